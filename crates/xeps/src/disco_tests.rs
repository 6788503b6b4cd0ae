//! Tests of the module of the same name, against a whole server in memory.

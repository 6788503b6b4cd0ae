//! Nothing yet but the place: what happens to a cluster of processes.

//! What the server does most, one operation at a time: nanoseconds by criterion, and figures that do not shake.
//!
//! ```text
//! cargo bench -p operations -p node --bench operations              nanoseconds of all of them
//! cargo bench -p operations -p node --bench operations -- archive   of those with that in their names
//! tests/bench/instructions/run                                   instructions and allocations, compared with what they were
//! ```
//! With `node`, what they are made of is built as the server has it, once. The last one runs this binary with `names`, and
//! with `count NAME` under valgrind.
//!
//! - [`operation`]: what an operation is, and the list of them.
//! - [`reading`], [`writing`], [`table`], [`relay`], [`scram`], [`archive`]: the operations; [`samples`]: their stanzas.
//! - [`counted`], [`timed`]: the two ways to measure them.

mod operation;
mod samples;
mod reading;
mod writing;
mod table;
mod relay;
mod scram;
mod archive;
mod counted;
mod timed;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["names"] => operation::ALL.iter().for_each(|(name, _)| println!("{name}")),
        ["count", name] => counted::report(name),
        _ => timed::run(),
    }
}

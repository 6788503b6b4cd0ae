//! Nanoseconds of each operation, by criterion.

use std::time::{Duration, Instant};

use criterion::Criterion;

use crate::operation::{ALL, Operation};

/// Times all operations that the command line asks for.
pub fn run() {
    let criterion = Criterion::default().warm_up_time(Duration::from_secs(1)).sample_size(50);
    let mut criterion = criterion.measurement_time(Duration::from_secs(3)).configure_from_args();
    for (name, begin) in ALL {
        // Not before it is known that it is asked for: some fill a table first.
        let mut operation = None;
        criterion.bench_function(name, |bencher| {
            let operation = operation.get_or_insert_with(begin);
            bencher.iter_custom(|goes| {
                let spent: Duration = (0..goes).map(|_| time(&mut **operation)).sum();
                spent / u32::try_from(operation.times()).expect("a go ends")
            });
        });
    }
    criterion.final_summary();
}

fn time(operation: &mut dyn Operation) -> Duration {
    operation.ready();
    let begun = Instant::now();
    operation.go();
    begun.elapsed()
}

//! Figures of one operation that do not shake: its allocations, and the stretch in which valgrind counts instructions.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::exit;

use crate::operation::{ALL, Operation};

/// Goes before those that count: what is made once, grows to its size, is asked of the kernel.
const BEFORE: usize = 4;
/// Goes that count.
const GOES: usize = 8;

/// The allocator of the server, which counts.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Of this thread alone: threads of the store allocate when they please.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BYTES.set(BYTES.get() + bytes as u64);
}

// SAFETY: each call is the system allocator's with the same arguments; the counters neither allocate nor panic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as promised to us.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as promised to us.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as promised to us.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Does an operation and prints how often, and what it allocated: blocks that were asked for or grown, and their bytes.
pub fn report(name: &str) {
    let Some((_, begin)) = ALL.iter().find(|(known, _)| *known == name) else {
        eprintln!("no operation is called `{name}`");
        exit(2);
    };
    let mut operation = begin();
    for _ in 0..BEFORE {
        operation.ready();
        operation.go();
    }
    let (mut allocations, mut bytes) = (0, 0);
    for _ in 0..GOES {
        operation.ready();
        let before = (ALLOCATIONS.get(), BYTES.get());
        rookery_measured(&mut *operation);
        allocations += ALLOCATIONS.get() - before.0;
        bytes += BYTES.get() - before.1;
    }
    println!("operations {}", operation.times() * GOES as u64);
    println!("allocations {allocations}");
    println!("bytes {bytes}");
}

/// What valgrind is told to count by its name.
// SAFETY: nobody else has a symbol of that name.
#[unsafe(no_mangle)]
#[inline(never)]
fn rookery_measured(operation: &mut dyn Operation) {
    operation.go();
}

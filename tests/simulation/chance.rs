//! Chance that a seed decides: dice for whoever asks, and the system's own source of random bits on this thread.

use std::{
    cell::RefCell,
    ffi::{c_uint, c_void},
};

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Dice of their own for one purpose, so that throws for another do not shift these.
    pub fn split(&mut self) -> Dice {
        Dice(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `low` up to and without `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }

    /// Whether it comes true, so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.between(0, 1_000) < per_mille
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.between(0, from.len() as u64) as usize]) }
    }
}

thread_local! {
    static SYSTEM: RefCell<Option<Dice>> = const { RefCell::new(None) };
}

/// From now on the system's random bits on this thread come from a seed: hash maps of the standard library and the
/// runtimes of tokio draw theirs there.
pub fn decide_all_by(seed: u64) {
    SYSTEM.with(|dice| *dice.borrow_mut() = Some(Dice::new(seed)));
}

/// In place of the C library's function of this name.
///
/// # Safety
/// `out` must be valid for writes of `len` bytes, as for the function that it replaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(out: *mut c_void, len: usize, flags: c_uint) -> isize {
    let simulated = SYSTEM.try_with(|dice| {
        let mut dice = dice.try_borrow_mut().ok()?;
        let dice = dice.as_mut()?;
        // SAFETY: the caller promises so many bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), len) };
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&dice.next().to_le_bytes()[..part.len()]);
        }
        Some(len as isize)
    });
    match simulated {
        Ok(Some(got)) => got,
        // SAFETY: the same arguments for the same call of the kernel.
        _ => unsafe { libc::syscall(libc::SYS_getrandom, out, len, flags) as isize },
    }
}

//! What memory comes from: the allocator of the C library takes a fifth more CPU for a message, and keeps what a crowd of
//! clients has left (decision 0015).

use std::ffi::c_char;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// What jemalloc reads when the process begins; the name is its own.
///
/// One thread gives back what was not used for ten seconds, the default, also while nobody allocates anything.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: Settings = Settings(c"background_thread:true,max_background_threads:1".as_ptr());

#[repr(transparent)]
struct Settings(*const c_char);

// SAFETY: it points to a text that is never written.
unsafe impl Sync for Settings {}

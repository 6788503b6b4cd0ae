//! The thread of one Raft group: its tasks hand over to one another without waking another thread for it, and
//! nothing else that the node does holds up its heartbeats.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::seam;

/// Runs a group's tasks; what still runs when it is dropped is ended.
pub(crate) struct GroupThread {
    handle: Handle,
    /// Dropping it ends the thread.
    _running: oneshot::Sender<()>,
}

impl GroupThread {
    /// Starts a thread.
    ///
    /// # Errors
    /// Fails where the system gives no thread.
    pub(crate) fn start(name: &str) -> io::Result<GroupThread> {
        if seam::is_simulated() {
            let (running, _) = oneshot::channel();
            return Ok(GroupThread { handle: Handle::current(), _running: running });
        }
        // No sockets: links live on the runtime that made them, and a thread that only has timers is woken cheaper.
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel();
        thread::Builder::new().name(format!("raft-{name}")).spawn(move || {
            // Nobody ever sends: the end of the sender is the sign.
            let _ = runtime.block_on(stopped);
            // What openraft reads or writes of snapshots meanwhile is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(GroupThread { handle, _running: running })
    }

    /// Where tasks of the group are started.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

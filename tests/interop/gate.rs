//! A door in front of a node that a test can shut, and open in front of another one.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use tests::client::Door;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Where connections are led to; `None` while it is shut.
type Target = Option<Door>;

/// Two ports that stay where they are, whatever stands behind them.
pub struct Gate {
    door: Door,
    target: Arc<watch::Sender<Target>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Gate {
    /// Opens one in front of a node.
    pub async fn before(door: Door) -> Result<Gate> {
        let target = Arc::new(watch::Sender::new(Some(door)));
        let c2s = TcpListener::bind((door.c2s.ip(), 0)).await?;
        let direct = TcpListener::bind((door.direct.ip(), 0)).await?;
        let door = Door { c2s: c2s.local_addr()?, direct: direct.local_addr()?, space: door.space };
        let tasks = vec![
            tokio::spawn(lead(c2s, target.clone(), |door| door.c2s)),
            tokio::spawn(lead(direct, target.clone(), |door| door.direct)),
        ];
        Ok(Gate { door, target, tasks })
    }

    pub fn door(&self) -> Door {
        self.door
    }

    /// Cuts all connections, without a word; who comes again waits until it is open.
    pub fn shut(&self) {
        self.target.send_replace(None);
    }

    /// Opens it in front of a node.
    pub fn open(&self, door: Door) {
        self.target.send_replace(Some(door));
    }
}

async fn lead(listener: TcpListener, target: Arc<watch::Sender<Target>>, which: fn(Door) -> SocketAddr) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut target = target.subscribe();
        tokio::spawn(async move {
            let Ok(Some(door)) = target.wait_for(Option::is_some).await.map(|target| *target) else { return };
            let Ok(mut far) = TcpStream::connect(which(door)).await else { return };
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = target.wait_for(Option::is_none) => {}
            }
        });
    }
}

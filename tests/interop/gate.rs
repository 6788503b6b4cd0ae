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
    /// How many connections are led to a node now.
    led: Arc<watch::Sender<usize>>,
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
        let led = Arc::new(watch::Sender::new(0));
        let c2s = TcpListener::bind((door.c2s.ip(), 0)).await?;
        let direct = TcpListener::bind((door.direct.ip(), 0)).await?;
        let door = Door { c2s: c2s.local_addr()?, direct: direct.local_addr()?, space: door.space };
        let tasks = vec![
            tokio::spawn(lead(c2s, target.clone(), led.clone(), |door| door.c2s)),
            tokio::spawn(lead(direct, target.clone(), led.clone(), |door| door.direct)),
        ];
        Ok(Gate { door, target, led, tasks })
    }

    pub fn door(&self) -> Door {
        self.door
    }

    /// Cuts all connections, without a word; who comes again waits until it is open. Once it returns, nothing passes.
    pub async fn shut(&self) -> Result<()> {
        self.target.send_replace(None);
        self.led.subscribe().wait_for(|led| *led == 0).await?;
        Ok(())
    }

    /// Opens it in front of a node.
    pub fn open(&self, door: Door) {
        self.target.send_replace(Some(door));
    }
}

async fn lead(
    listener: TcpListener,
    target: Arc<watch::Sender<Target>>,
    led: Arc<watch::Sender<usize>>,
    which: fn(Door) -> SocketAddr,
) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut target = target.subscribe();
        let led = led.clone();
        tokio::spawn(async move {
            let door = match target.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(door)) => {
                    // While the target is looked at it cannot change, so whoever shuts the gate waits for this one.
                    led.send_modify(|led| *led += 1);
                    *door
                }
                _ => return,
            };
            if let Ok(mut far) = TcpStream::connect(which(door)).await {
                tokio::select! {
                    biased;
                    _ = target.wait_for(Option::is_none) => {}
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                }
            }
            drop(near);
            led.send_modify(|led| *led -= 1);
        });
    }
}

//! A cluster on machines of its own, as far as its nodes can tell, that chats while something is done to it.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::{
    nodes::{Layout, Nodes},
    talk::Talk,
};
use tokio::time::{Instant, interval_at};

/// Each client says something so often.
pub const PACE: Duration = Duration::from_millis(120);
/// A node that is cut off is expired 5 s after its last renewal; an election may come before.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How long a node may take to be back.
pub const BACK_WITHIN: Duration = Duration::from_secs(30);

/// A cluster that chats, two users at each node for clients.
pub struct Scene {
    pub nodes: Nodes,
    pub talk: Talk,
}

impl Scene {
    /// `None` where there are no namespaces.
    pub async fn set(layout: Layout) -> Result<Option<Scene>> {
        let Some(nodes) = Nodes::start_apart(layout, |_, _, config| Ok(config)).await? else {
            return Ok(None);
        };
        let doors = (0..nodes.nodes.len()).filter(|at| nodes.nodes[*at].door.is_some());
        let mut homes: Vec<usize> = doors.clone().chain(doors).collect();
        if layout == Layout::Split {
            homes.extend_from_within(..2);
        }
        match Talk::begin(&nodes, &homes, PACE).await {
            Ok(talk) => Ok(Some(Scene { nodes, talk })),
            Err(error) => {
                nodes.keep();
                Err(error)
            }
        }
    }

    /// The node that leads, as another sees it.
    pub async fn leader(&self) -> Result<usize> {
        let led = |s: &proto::admin::GetClusterResponse| s.nodes.iter().any(|n| n.leader);
        let status = self.nodes.until(0, "somebody leads", GONE_WITHIN, led).await?;
        let leader = status.nodes.into_iter().find(|n| n.leader).context("nobody leads")?;
        self.nodes.nodes.iter().position(|n| n.name == leader.name).context("a node of another cluster leads")
    }

    /// A node that does not lead and has clients.
    pub async fn follower(&self) -> Result<usize> {
        let leader = self.leader().await?;
        let nodes = self.nodes.nodes.iter().enumerate();
        { nodes }.rfind(|(at, n)| *at != leader && n.door.is_some()).map(|(at, _)| at).context("no such node")
    }

    /// All links between one node and the others, both ways.
    pub fn both_ways(&self, at: usize) -> Vec<(usize, usize)> {
        let others = (0..self.nodes.nodes.len()).filter(|other| *other != at);
        others.flat_map(|other| [(at, other), (other, at)]).collect()
    }

    pub async fn cut(&self, links: &[(usize, usize)]) -> Result<()> {
        self.nodes.ground()?.cut(links).await
    }

    pub async fn mend(&self, links: &[(usize, usize)]) -> Result<()> {
        self.nodes.ground()?.mend(links).await
    }

    pub async fn incarnation(&self, of: usize, seen_by: usize) -> Result<u64> {
        let name = &self.nodes.nodes[of].name;
        let status = self.nodes.status(seen_by).await?;
        Ok(status.nodes.iter().find(|n| n.name == *name).context("the node is unknown")?.incarnation)
    }

    /// Waits until another node holds this one for gone.
    pub async fn until_gone(&self, of: usize, seen_by: usize) -> Result<()> {
        let name = &self.nodes.nodes[of].name;
        let gone = |s: &proto::admin::GetClusterResponse| {
            s.nodes.iter().any(|n| n.name == *name && n.state == "gone")
        };
        self.nodes.until(seen_by, "a node that was cut off is gone", GONE_WITHIN, gone).await.map(drop)
    }

    /// Waits until a node serves, and the others say so.
    pub async fn until_back(&self, of: usize, seen_by: usize) -> Result<()> {
        let name = &self.nodes.nodes[of].name;
        let up =
            |s: &proto::admin::GetClusterResponse| s.nodes.iter().any(|n| n.name == *name && n.state == "up");
        self.nodes.until(seen_by, "the node is up again", BACK_WITHIN, up).await?;
        let serves = |s: &proto::admin::GetClusterResponse| s.serving;
        self.nodes.until(of, "the node serves again", BACK_WITHIN, serves).await.map(drop)
    }

    /// The account of all of it; the logs stay if it does not add up.
    pub async fn settle(&self) -> Result<()> {
        let figures = self.talk.settle(&self.nodes).await;
        if figures.is_err() {
            self.nodes.keep();
        }
        println!("{}", figures?);
        Ok(())
    }

    /// Users whose home is this node.
    pub fn users_of(&self, at: usize) -> Vec<usize> {
        let book = self.talk.book();
        (0..self.talk.people.len())
            .filter(|me| book.current(*me).is_some_and(|(_, node)| node == at))
            .collect()
    }
}

/// Lets time pass: it is what a cut is made of.
pub async fn passes(since: Instant, time: Duration) {
    interval_at(since + time, time).tick().await;
}

/// Runs a story; its logs stay where it fails.
pub async fn story(layout: Layout, play: impl AsyncFnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    let Some(mut scene) = Scene::set(layout).await? else { return Ok(()) };
    let mut played = play(&mut scene).await;
    if played.is_ok() {
        played = scene.settle().await;
    }
    if played.is_err() {
        scene.nodes.keep();
    }
    played
}

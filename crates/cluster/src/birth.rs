//! What a node knows of itself across restarts: its key, its member id, its cluster and the cluster's founders.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use crate::{
    role::{ClusterId, MemberId},
    seam::random_bits,
};

/// First line of the file.
const HEAD: &str = "rookery-node 1";

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Born {
    /// Names this data directory.
    pub(crate) key: u128,
    /// Names this node in the Raft groups.
    pub(crate) member: MemberId,
    /// The cluster that this node belongs to.
    pub(crate) cluster: Option<ClusterId>,
    /// The founders, if this node is one of them.
    pub(crate) founders: Vec<(MemberId, String)>,
    /// How often the cluster was recovered.
    pub(crate) epoch: u64,
    /// The recovery that wrote the logs of this node, 0 if none did.
    pub(crate) logs: u64,
    /// A recovery was begun here and is not complete.
    pub(crate) recovering: bool,
}

/// The file, and what it says.
pub(crate) struct Certificate {
    path: PathBuf,
    born: Mutex<Born>,
}

impl Certificate {
    /// Reads the file of a folder, or draws a new key and member id.
    pub(crate) fn open(dir: &Path) -> io::Result<Certificate> {
        fs::create_dir_all(dir)?;
        let path = dir.join("node");
        let born = match fs::read_to_string(&path) {
            Ok(text) => parse(&text).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is damaged", path.display()))
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Zero stands for "no member" in messages.
                let member = MemberId((random_bits() as u64).max(1));
                let key = random_bits();
                let (cluster, founders, recovering) = (None, Vec::new(), false);
                let born = Born { key, member, cluster, founders, epoch: 0, logs: 0, recovering };
                write(&path, &born)?;
                born
            }
            Err(e) => return Err(e),
        };
        Ok(Certificate { path, born: Mutex::new(born) })
    }

    pub(crate) fn born(&self) -> Born {
        self.born.lock().clone()
    }

    /// Takes the key that the cluster gave to this node, and keeps the cluster for good; an error if the node
    /// belongs to another one.
    pub(crate) fn become_known_as(&self, key: u128, cluster: ClusterId, epoch: u64) -> io::Result<()> {
        let mut born = self.born.lock();
        if born.cluster.is_some_and(|ours| ours != cluster) {
            return Err(io::Error::other("this node belongs to another cluster"));
        }
        let next = Born { key, cluster: Some(cluster), epoch, ..born.clone() };
        write(&self.path, &next)?;
        *born = next;
        Ok(())
    }

    /// Notes that a recovery has begun, which must be completed before the node starts again.
    pub(crate) fn begin_recovery(&self) -> io::Result<()> {
        self.change(|born| born.recovering = true)
    }

    /// Enters an epoch of its cluster as the one that recovered it, alone.
    pub(crate) fn recovered(&self, epoch: u64, address: &str) -> io::Result<()> {
        self.change(|born| {
            (born.epoch, born.logs, born.recovering) = (epoch, epoch, false);
            born.founders = vec![(born.member, address.to_owned())];
        })
    }

    /// Enters an epoch of its cluster as one that kept nothing of the former.
    pub(crate) fn enter(&self, epoch: u64) -> io::Result<()> {
        self.change(|born| born.epoch = epoch)
    }

    fn change(&self, change: impl FnOnce(&mut Born)) -> io::Result<()> {
        let mut born = self.born.lock();
        let mut next = born.clone();
        change(&mut next);
        write(&self.path, &next)?;
        *born = next;
        Ok(())
    }

    /// Keeps the cluster for good; an error if the node belongs to another one.
    pub(crate) fn belong(
        &self,
        cluster: ClusterId,
        epoch: u64,
        founders: &[(MemberId, String)],
    ) -> io::Result<()> {
        let mut born = self.born.lock();
        if born.cluster.is_some_and(|ours| ours != cluster) {
            return Err(io::Error::other("this node belongs to another cluster"));
        }
        let founds = founders.iter().any(|(member, _)| *member == born.member);
        let founders = if founds { founders.to_vec() } else { Vec::new() };
        let next = Born { cluster: Some(cluster), founders, epoch, ..born.clone() };
        if *born != next {
            write(&self.path, &next)?;
            *born = next;
        }
        Ok(())
    }
}

fn write(path: &Path, born: &Born) -> io::Result<()> {
    let mut text = format!("{HEAD}\nkey {:032x}\nmember {}\n", born.key, born.member);
    if let Some(cluster) = born.cluster {
        text += &format!("cluster {cluster}\n");
    }
    if born.epoch > 0 {
        text += &format!("epoch {}\n", born.epoch);
    }
    if born.logs > 0 {
        text += &format!("logs {}\n", born.logs);
    }
    if born.recovering {
        text += "recovering\n";
    }
    for (member, address) in &born.founders {
        text += &format!("founder {member} {address}\n");
    }
    text += "end\n";
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn parse(text: &str) -> Option<Born> {
    let mut lines = text.lines();
    if lines.next()? != HEAD {
        return None;
    }
    let (mut key, mut member, mut cluster, mut founders) = (None, None, None, Vec::new());
    let (mut epoch, mut logs, mut recovering) = (0, 0, false);
    for line in lines {
        let mut words = line.split(' ');
        match (words.next()?, words.next(), words.next()) {
            ("key", Some(hex), None) => key = u128::from_str_radix(hex, 16).ok(),
            ("member", Some(hex), None) => member = u64::from_str_radix(hex, 16).ok().map(MemberId),
            ("cluster", Some(hex), None) => cluster = Some(ClusterId(u128::from_str_radix(hex, 16).ok()?)),
            ("founder", Some(hex), Some(address)) => {
                founders.push((MemberId(u64::from_str_radix(hex, 16).ok()?), address.to_string()));
            }
            ("epoch", Some(number), None) => epoch = number.parse().ok()?,
            ("logs", Some(number), None) => logs = number.parse().ok()?,
            ("recovering", None, None) => recovering = true,
            ("end", None, None) => {
                let (key, member) = (key?, member?);
                return Some(Born { key, member, cluster, founders, epoch, logs, recovering });
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_itself_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Certificate::open(dir.path()).unwrap();
        let founders =
            vec![(first.born().member, "127.0.0.1:1".to_string()), (MemberId(9), "b:2".to_string())];
        first.belong(ClusterId(5), 0, &founders).unwrap();
        let again = Certificate::open(dir.path()).unwrap();
        assert_eq!(again.born(), first.born());
        assert_eq!((again.born().cluster, again.born().founders), (Some(ClusterId(5)), founders));
    }

    #[test]
    fn a_node_that_joins_is_known_by_the_key_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let node = Certificate::open(dir.path()).unwrap();
        node.become_known_as(77, ClusterId(5), 2).unwrap();
        assert!(node.become_known_as(78, ClusterId(6), 2).is_err());
        let born = Certificate::open(dir.path()).unwrap().born();
        assert_eq!((born.key, born.cluster, born.member), (77, Some(ClusterId(5)), node.born().member));
        assert_eq!(born.epoch, 2);
    }

    #[test]
    fn a_recovery_is_known_from_its_beginning_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let node = Certificate::open(dir.path()).unwrap();
        let others = [(node.born().member, "a:1".to_owned()), (MemberId(9), "b:2".to_owned())];
        node.belong(ClusterId(5), 0, &others).unwrap();
        let again = || Certificate::open(dir.path()).unwrap().born();
        assert!(!again().recovering);
        node.begin_recovery().unwrap();
        assert_eq!((again().recovering, again().epoch), (true, 0));
        node.recovered(1, "a:1").unwrap();
        assert_eq!((again().recovering, again().epoch, again().founders), (false, 1, others[..1].to_vec()));
        node.enter(2).unwrap();
        assert_eq!((again().epoch, again().logs), (2, 1));
        assert_eq!((again().key, again().cluster), (node.born().key, Some(ClusterId(5))));
    }

    #[test]
    fn a_persisted_cluster_id_forbids_another() {
        let dir = tempfile::tempdir().unwrap();
        let node = Certificate::open(dir.path()).unwrap();
        node.belong(ClusterId(5), 0, &[]).unwrap();
        node.belong(ClusterId(5), 0, &[]).unwrap();
        assert!(node.belong(ClusterId(6), 0, &[]).is_err());
        assert_eq!(node.born().cluster, Some(ClusterId(5)));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Certificate::open(dir.path()).unwrap());
        let path = dir.path().join("node");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        assert!(Certificate::open(dir.path()).is_err());
    }
}

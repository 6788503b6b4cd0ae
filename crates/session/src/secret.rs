//! The secret behind the fake salts of accounts that do not exist: kept in the store, the same on every node.

use std::time::Duration;

use hooks::{Partition, Store, StoreError, Stored, Table};
use serde::{Deserialize, Serialize};

/// The record that holds it.
#[derive(Clone, Serialize, Deserialize)]
struct LoginSecret {
    bytes: Vec<u8>,
}

impl Stored for LoginSecret {
    const TABLE: Table = Table("login-secret");
    const SCHEMA: u8 = 1;
}

/// A login must not wait longer than this for the secret.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the secret, or makes it where this is the first node that asks. `host` is the first of the hosts:
/// the one name that all nodes share.
pub(crate) async fn secret(store: &Store, host: &str, fresh: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    let partition = Partition::Host(host.into());
    let agree = async {
        if let Some(kept) = store.get::<LoginSecret>(&partition, b"").await? {
            return Ok(kept.bytes);
        }
        store.insert(&partition, b"", &LoginSecret { bytes: fresh }).await?;
        // Another node may have been first: what is stored counts.
        let kept = store.get::<LoginSecret>(&partition, b"").await?;
        kept.map(|kept| kept.bytes).ok_or(StoreError::Unavailable { reason: "the secret vanished".into() })
    };
    match tokio::time::timeout(PATIENCE, agree).await {
        Ok(agreed) => agreed,
        Err(_) => Err(StoreError::Deadline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_node_gets_the_secret_of_the_first() {
        let store = Store::memory();
        let first = secret(&store, "localhost", vec![1; 32]).await.unwrap();
        assert_eq!(first, vec![1; 32]);
        assert_eq!(secret(&store, "localhost", vec![2; 32]).await.unwrap(), first);
    }
}

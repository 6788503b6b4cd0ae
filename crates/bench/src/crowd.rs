//! Many of something, so many of them at a time.

use std::{future::Future, sync::Arc};

use anyhow::Result;
use tokio::{sync::Semaphore, task::JoinSet};

/// Does the work for each of them, at most `at_once` at a time; the results in no order.
///
/// # Errors
/// The first one of the work; the others are given up then.
pub async fn each<T, R, F>(
    of: impl IntoIterator<Item = T>,
    at_once: usize,
    work: impl Fn(T) -> F,
) -> Result<Vec<R>>
where
    F: Future<Output = Result<R>> + Send + 'static,
    R: Send + 'static,
{
    let turns = Arc::new(Semaphore::new(at_once.max(1)));
    let (mut running, mut results) = (JoinSet::new(), Vec::new());
    for one in of {
        let turn = turns.clone().acquire_owned().await?;
        let working = work(one);
        running.spawn(async move {
            let result = working.await;
            drop(turn);
            result
        });
        while let Some(end) = running.try_join_next() {
            results.push(end??);
        }
    }
    while let Some(end) = running.join_next().await {
        results.push(end??);
    }
    Ok(results)
}

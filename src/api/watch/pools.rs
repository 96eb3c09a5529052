//! Watches of pools.

use std::collections::BTreeSet;

use tonic::Status;

use super::Watched;
use crate::api::convert;
use crate::api::proto::v1;
use crate::api::response_stream::{MessagePermit, ResponseSender};
use crate::broker::query::{ListPools, PoolView};
use crate::model::change::Change;
use crate::model::id::{PoolId, Revision};
use crate::runtime::handle::Handle;

/// Watches all pools.
pub(in crate::api) struct PoolWatch(pub(in crate::api) Handle);

impl Watched for PoolWatch {
    type Message = v1::WatchPoolsResponse;

    async fn list(&self, _: Revision, sender: &ResponseSender<Self::Message>) -> Result<Revision, Status> {
        let permit = sender.reserve().await?;
        let (revision, pools) = self.0.query(ListPools).await?;
        send(pools.iter(), revision, true, permit, sender).await?;
        Ok(revision)
    }

    async fn changed(
        &self,
        changes: BTreeSet<Change>,
        _: Revision,
        through: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> Result<Revision, Status> {
        let changed = changes.into_iter().filter_map(|change| match change {
            Change::Pool(id) => Some(id),
            Change::Node(at) => Some(at.pool),
            _ => None,
        });
        let changed: BTreeSet<PoolId> = changed.collect();
        if changed.is_empty() {
            return Ok(through);
        }
        let permit = sender.reserve().await?;
        let (revision, pools) = self.0.query(ListPools).await?;
        if !changed.iter().all(|id| pools.iter().any(|pool| pool.pool.id == *id)) {
            // What was deleted can only be left out of a new list.
            send(pools.iter(), revision, true, permit, sender).await?;
            return Ok(revision);
        }
        let changed = pools.iter().filter(|pool| changed.contains(&pool.pool.id));
        send(changed, revision, false, permit, sender).await?;
        Ok(through)
    }
}

async fn send(
    pools: impl Iterator<Item = &PoolView>,
    revision: Revision,
    relisted: bool,
    permit: MessagePermit,
    sender: &ResponseSender<v1::WatchPoolsResponse>,
) -> Result<(), Status> {
    let pools = pools.map(convert::pool_message).collect();
    sender.send(permit, v1::WatchPoolsResponse { pools, revision: revision.0, relisted }).await
}

//! Watches of pools.

use tonic::Status;

use super::whole::Few;
use crate::api::convert;
use crate::api::proto::v1;
use crate::broker::query::{ListPools, PoolView};
use crate::model::change::Change;
use crate::model::id::{PoolId, Revision};
use crate::runtime::handle::Handle;

/// Watches all pools.
pub(in crate::api) struct PoolWatch(pub(in crate::api) Handle);

impl Few for PoolWatch {
    type Id = PoolId;
    type Object = PoolView;
    type Message = v1::WatchPoolsResponse;

    async fn all(&self) -> Result<(Revision, Vec<PoolView>), Status> {
        Ok(self.0.query(ListPools).await?)
    }

    fn changed_id(change: Change) -> Option<PoolId> {
        match change {
            Change::Pool(id) => Some(id),
            Change::Node(at) => Some(at.pool),
            _ => None,
        }
    }

    fn id(view: &PoolView) -> PoolId {
        view.pool.id
    }

    fn message(pools: &[&PoolView], revision: Revision, relisted: bool) -> v1::WatchPoolsResponse {
        let pools = pools.iter().map(|pool| convert::pool_message(pool)).collect();
        v1::WatchPoolsResponse { pools, revision: revision.0, relisted }
    }
}

//! Watches of objects of which all fit into one message.

use std::collections::BTreeSet;

use tonic::Status;

use super::Watched;
use crate::api::response_stream::ResponseSender;
use crate::model::change::Change;
use crate::model::id::Revision;

/// Objects of one kind that are few.
pub(in crate::api) trait Few: Send + Sync + 'static {
    type Id: Ord + Send;
    type Object: Send + Sync;
    type Message: Send;

    /// Reads all objects.
    fn all(&self) -> impl Future<Output = Result<(Revision, Vec<Self::Object>), Status>> + Send;

    /// The object that a change alters, if it is of this kind.
    fn changed_id(change: Change) -> Option<Self::Id>;

    fn id(object: &Self::Object) -> Self::Id;

    fn message(objects: &[&Self::Object], revision: Revision, relisted: bool) -> Self::Message;
}

impl<K: Few> Watched for K {
    type Message = K::Message;

    async fn list(&self, _: Revision, sender: &ResponseSender<Self::Message>) -> Result<Revision, Status> {
        let permit = sender.reserve().await?;
        let (revision, objects) = self.all().await?;
        sender.send(permit, K::message(&objects.iter().collect::<Vec<_>>(), revision, true)).await?;
        Ok(revision)
    }

    async fn changed(
        &self,
        changes: BTreeSet<Change>,
        _: Revision,
        through: Revision,
        sender: &ResponseSender<Self::Message>,
    ) -> Result<Revision, Status> {
        let changed: BTreeSet<K::Id> = changes.into_iter().filter_map(K::changed_id).collect();
        if changed.is_empty() {
            return Ok(through);
        }
        let permit = sender.reserve().await?;
        let (revision, objects) = self.all().await?;
        // What was deleted can only be left out of a new list.
        let found: Vec<_> = objects.iter().filter(|object| changed.contains(&K::id(object))).collect();
        if found.len() < changed.len() {
            sender.send(permit, K::message(&objects.iter().collect::<Vec<_>>(), revision, true)).await?;
            return Ok(revision);
        }
        sender.send(permit, K::message(&found, revision, false)).await?;
        Ok(through)
    }
}

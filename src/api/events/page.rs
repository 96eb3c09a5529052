//! Pages of the journal's events.

use tonic::Status;

use crate::api::job::Jobs;
use crate::model::id::Revision;
use crate::runtime::handle::EventPage;

/// Reads the events after a revision.
pub(super) async fn read(jobs: &Jobs, after: Revision) -> Result<EventPage, Status> {
    Ok(jobs.broker.archive_page(move |archive| archive.events(after)).await?)
}

//! Pages of a job's units by where they stand.

use tonic::Status;

use super::job::Jobs;
use super::page::{check_count, page_size, page_token};
use super::proto::v1;
use super::{convert, error};
use crate::broker::query::ListUnits;
use crate::model::id::JobId;
use crate::model::limit::PAGE_MAX;
use crate::state::units::{Units, unit_ranges};

/// States that a request may name, with some room for repeated ones.
const STATES_MAX: usize = 8;
/// How often the broker is asked for one page: where few units are in the states, the page is shorter.
const ROUNDS_MAX: usize = 16;

impl Jobs {
    /// A page of the ranges of a job's units.
    pub(super) async fn units(&self, message: v1::ListUnitsRequest) -> Result<v1::ListUnitsResponse, Status> {
        let limit = page_size(message.page_size)?;
        check_count("states", "entries", message.states.len(), 0, STATES_MAX)?;
        for (index, state) in message.states.iter().enumerate() {
            convert::check_unit_state(&format!("states[{index}]"), *state).map_err(error::invalid)?;
        }
        let mut from = page_token::<u32>(&message.page_token)?.unwrap_or(0);
        let job = self.find("job", message.job.as_ref()).await?;
        let total = job.counts.total;
        let mut units: Vec<v1::Units> = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let ranges = self.unit_ranges(job.id, total, from, PAGE_MAX).await?;
            for range in ranges {
                let range = convert::units_message(range);
                from = range.last + 1;
                if message.states.is_empty() || message.states.contains(&range.state) {
                    units.push(range);
                }
                if units.len() == limit {
                    break;
                }
            }
            if units.len() == limit || from >= total {
                break;
            }
        }
        let next_page_token = if from < total { from.to_string() } else { String::new() };
        Ok(v1::ListUnitsResponse { units, next_page_token })
    }

    async fn unit_ranges(
        &self,
        job: JobId,
        total: u32,
        from: u32,
        limit: usize,
    ) -> Result<Vec<Units>, Status> {
        if let (_, Some(ranges)) = self.broker.query(ListUnits { job, from, limit }).await? {
            return Ok(ranges);
        }
        let ended = self.broker.archive(move |archive| archive.job(job)).await?;
        let ended = ended.ok_or_else(|| error::not_found("job", &job.to_string()))?;
        Ok(unit_ranges(&ended.job.groups, total, false, from, limit))
    }
}

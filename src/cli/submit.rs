//! `weir submit`: submits the jobs of a file.

use prost::Message;

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::output::print;
use super::{Connect, Failure, input, spec_file};
use crate::api::proto::v1;
use crate::model::limit::MESSAGE_BYTES_MAX;

/// Submit jobs from a YAML or JSON file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir submit train.yaml\n  weir submit -f train.yaml\n  ./make-jobs | weir submit -\n\nA file contains one job, a list of jobs, or several YAML documents:\n  name: hello\n  groups:\n  - count: 3\n    cpus: 500m\n    memory: 64Mi\n    command: [sh, -c, 'echo task $WEIR_TASK_INDEX in $WEIR_REGION']"
)]
pub struct Submit {
    #[command(flatten)]
    file: input::FileArgument,
    /// Also submit jobs that no present pool can ever run: they wait for a pool that can.
    #[arg(long)]
    allow_pending: bool,
}

/// Jobs in one request: half of what the broker accepts.
const BATCH: usize = 500;
/// Bytes of the jobs in one request: half of what the broker accepts.
const BATCH_BYTES: usize = MESSAGE_BYTES_MAX / 2;

/// Number of jobs in the next request. At least one, even if it is larger than the broker accepts.
fn batch_len(jobs: &[v1::Submission]) -> usize {
    let mut bytes = 0;
    let fitting = jobs.iter().take(BATCH).take_while(|job| {
        bytes += job.encoded_len();
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1)
}

impl Submit {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let file = self.file.name();
        let text = input::read_text(&file)?;
        let mut jobs = spec_file::read_jobs(&text).map_err(|error| input::in_file(&file, error))?;
        for job in &mut jobs {
            if job.queue.is_empty() {
                job.queue = connect.queue.clone();
            }
        }
        let client = connect.client()?;
        let mut rest = &jobs[..];
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(batch_len(rest));
            rest = after;
            let request = v1::SubmitRequest {
                token: new_token(),
                jobs: batch.to_vec(),
                allow_pending: self.allow_pending,
            };
            let response =
                with_retries(RETRY_TIMEOUT, || async { client.jobs().submit(request.clone()).await });
            let response = response.await.map_err(|status| Failure::from(status).in_file(&file))?;
            // The response lists one job per submission, in the same order.
            for (job, asked) in response.into_inner().jobs.iter().zip(batch) {
                print(&format!("{}\n", job_name(&asked.queue, &job.name)))?;
            }
        }
        Ok(0)
    }
}

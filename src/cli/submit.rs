//! `weir submit`.

use std::io::Read;

use super::connect::{PATIENCE, new_token, patiently};
use super::exit::INVALID;
use super::output::print;
use super::{Connect, Failure, spec_file};
use crate::api::proto::v1;

/// Submits jobs from a file.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir submit train.yaml\n  generate | weir submit -\n\nA file holds one job, a list, or several YAML documents:\n  name: hello\n  groups:\n  - count: 3\n    cpus: 500m\n    memory: 64Mi\n    command: [sh, -c, 'echo task $WEIR_TASK_INDEX in $WEIR_REGION']"
)]
pub struct Submit {
    /// YAML or JSON; `-` reads standard input.
    file: String,
}

/// Jobs in one request.
const BATCH: usize = 500;

impl Submit {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let mut text = String::new();
        if self.file == "-" {
            std::io::stdin().read_to_string(&mut text)?;
        } else {
            text = std::fs::read_to_string(&self.file)
                .map_err(|error| Failure::new(INVALID, format!("{}: {error}", self.file)))?;
        }
        let mut jobs = spec_file::read_jobs(&text)
            .map_err(|error| Failure::new(INVALID, format!("{}: {error}", self.file)))?;
        for job in &mut jobs {
            if job.queue.is_empty() {
                job.queue = connect.queue.clone();
            }
        }
        let client = connect.client()?;
        for batch in jobs.chunks(BATCH) {
            let request = v1::SubmitRequest { token: new_token(), jobs: batch.to_vec() };
            let response =
                patiently(PATIENCE, || async { client.jobs().submit(request.clone()).await }).await?;
            for job in response.into_inner().jobs {
                print(&format!("job/{}\n", job.name))?;
            }
        }
        Ok(0)
    }
}

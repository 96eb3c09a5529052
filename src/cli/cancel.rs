//! `weir cancel`: cancels jobs.

use super::connect::{RETRY_TIMEOUT, new_token, with_retries};
use super::{Connect, Failure};
use crate::api::proto::v1;

/// Cancel jobs.
///
/// Running tasks get SIGTERM, and SIGKILL after the grace period of their job. Jobs that have ended are not
/// changed.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir cancel job/train-7 job/train-8\n  weir cancel $(weir get jobs -l team=vision -o name)"
)]
pub struct Cancel {
    /// Jobs to cancel: job/NAME, job/QUEUE/NAME or the id.
    #[arg(required = true)]
    jobs: Vec<String>,
}

impl Cancel {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let jobs = self.jobs.iter().map(|text| connect.job_ref(text)).collect::<Result<Vec<_>, _>>()?;
        let request = v1::CancelRequest { token: new_token(), jobs };
        with_retries(RETRY_TIMEOUT, || async { client.jobs().cancel(request.clone()).await }).await?;
        Ok(0)
    }
}

//! `weir describe`: the details of a job, attempt, pool, node or queue.

mod attempt;
mod job;
mod node;
mod pool;
mod queue;

use serde_json::Value;

use super::exit::{INVALID, NOT_FOUND, USAGE};
use super::get::{all_queues, list_nodes};
use super::job_file::job_value;
use super::job_list::JobFilter;
use super::kind::Kind;
use super::language::{label, translated_value};
use super::output::{Format, padded, print, print_value, report, value_of};
use super::queue_file::queue_value;
use super::{Connect, Failure};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::id::AttemptId;
use crate::model::text::escape;
use crate::model::validate::quote;

/// Show the details of a job, attempt, pool, node or queue.
///
/// A job: its task groups, attempts and a timeline. A pool: its state, allocation and free devices. A node: its devices.
/// A queue: its limits and those above it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir describe job/train-7\n  weir describe job/vision/train-7       a job of queue vision\n  weir describe attempt/bcuovbmho6-10-0-1\n  weir describe pool/xj-ascend\n  weir describe node/dgx-0001\n  weir describe queue/research/vision -o json"
)]
pub struct Describe {
    /// job/NAME, job/QUEUE/NAME, attempt/ID, pool/NAME, node/NAME, queue/NAME, or TYPE followed by NAME. A name without
    /// a type is a job.
    what: String,
    /// Name of the object, if only its type is given before.
    name: Option<String>,
    /// Output format: json and yaml have all fields.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Describe {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let (kind, name) = match (self.what.split_once('/'), &self.name) {
            (Some(_), Some(second)) => {
                let message = format!("{} would be ignored: name one object", quote(second));
                return Err(Failure::new(USAGE, message));
            }
            (None, None) if Kind::parse(&self.what).is_some() => {
                let kind = &self.what;
                return Err(Failure::new(USAGE, format!("name the object: weir describe {kind}/NAME")));
            }
            (Some((kind, name)), None) => (kind, name),
            (None, Some(name)) => (self.what.as_str(), name.as_str()),
            (None, None) => ("job", self.what.as_str()),
        };
        let rule = "can't be described: use job, attempt, pool, node or queue";
        let refused = || Failure::new(INVALID, format!("{} {rule}", quote(kind)));
        let parsed = Kind::parse(kind).ok_or_else(refused)?;
        let client = connect.client()?;
        match parsed {
            Kind::Units => return Err(refused()),
            Kind::Jobs => self.job(&client, connect, name).await?,
            Kind::Attempts => self.attempt(&client, name).await?,
            Kind::Pools => {
                let request = v1::GetPoolRequest { name: name.to_owned() };
                let response = client.pools().get_pool(request).await?.into_inner();
                let pool = response.pool.clone().unwrap_or_default();
                self.show(|| value_of(&response), || pool::pool_text(&pool, &response.free_blocks))?;
            }
            Kind::Nodes => {
                let (nodes, _) = list_nodes(&client, None, Some(name), None).await?;
                let text = || nodes.iter().map(node::node_text).collect::<Vec<_>>().join("\n");
                self.show(|| value_of(&nodes), text)?;
            }
            Kind::Queues => self.queue(&client, name).await?,
        }
        Ok(0)
    }

    /// Prints an object as JSON or YAML, or as text.
    fn show(
        &self,
        value: impl FnOnce() -> Result<Value, Failure>,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.output {
            Format::Json | Format::Yaml => print_value(self.output, value()?),
            Format::Table | Format::Wide | Format::Name => print(&text()),
        }
    }

    async fn job(&self, client: &Client, connect: &Connect, name: &str) -> Result<(), Failure> {
        let at = connect.job_ref(&format!("job/{name}"))?;
        let request = v1::GetJobRequest { job: Some(at), with_attempts: true };
        let response = client.jobs().get_job(request).await?.into_inner();
        let job = response.job.unwrap_or_default();
        let value = || {
            let mut value = job_value(&job)?;
            value["attempts"] = value_of(&response.attempts)?;
            Ok(value)
        };
        self.show(value, || job::job_text(&job, &response.attempts))?;
        if response.more_attempts {
            let shown = response.attempts.len();
            report(&format!(
                "only the first {shown} attempts are shown; `weir get attempts job/{}` lists all",
                escape(&job.name)
            ));
        }
        Ok(())
    }

    async fn attempt(&self, client: &Client, name: &str) -> Result<(), Failure> {
        let id: AttemptId = name.parse().map_err(|_| {
            let hint = "write JOURNAL-JOB-UNIT-NUMBER, as `weir describe job/NAME` prints it";
            Failure::new(INVALID, format!("{} is not the id of an attempt: {hint}", quote(name)))
        })?;
        let job = Some(v1::JobRef { id: id.job.0, ..v1::JobRef::default() });
        // The page that begins with the attempt.
        let page_token = if id.number > 1 || id.unit > 0 {
            format!("{}.{}", id.unit, id.number - 1)
        } else {
            String::new()
        };
        let request =
            v1::ListAttemptsRequest { job: job.clone(), page_size: 1, page_token, ..Default::default() };
        let found = client.jobs().list_attempts(request).await?.into_inner().attempts;
        let missing = || Failure::new(NOT_FOUND, format!("attempt {} does not exist", quote(name)));
        let attempt = found.into_iter().find(|attempt| attempt.id == name).ok_or_else(missing)?;
        let request = v1::GetJobRequest { job, with_attempts: false };
        let job = client.jobs().get_job(request).await?.into_inner().job.unwrap_or_default();
        self.show(|| value_of(&attempt), || attempt::attempt_text(&attempt, &job))
    }

    async fn queue(&self, client: &Client, name: &str) -> Result<(), Failure> {
        let all = all_queues(client).await?;
        let Some(queue) = all.iter().find(|queue| queue.name == name) else {
            return Err(Failure::new(NOT_FOUND, format!("queue {} does not exist", quote(name))));
        };
        let mut filter = JobFilter::of_queue("");
        filter.message.queues.push(name.to_owned());
        let (jobs, _) = filter.list(client, v1::JobView::Basic, None).await?;
        self.show(|| queue_value(queue), || queue::queue_text(queue, &all, &jobs))
    }
}

/// Adds a line: the field's name, in the language of this process, and its value.
fn push_field(out: &mut String, key: &str, value: &str) {
    let inner = key.trim_start();
    let key = format!("{}{}", &key[..key.len() - inner.len()], label(inner));
    out.push_str(&format!("{}{}\n", padded(&key, 12), escape(value)));
}

/// Adds a line as [`push_field`] does, whose value is a text of this program.
fn push_text(out: &mut String, key: &str, english: &str) {
    push_field(out, key, &translated_value(english));
}

/// Adds a line, if there is a value.
fn push_given(out: &mut String, key: &str, value: &str) {
    if !value.is_empty() {
        push_field(out, key, value);
    }
}

/// Labels as they are selected: `a=b,c=d`.
fn pairs(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

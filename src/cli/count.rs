//! `weir count`: how many jobs there are, by what they have in common.

use serde_json::json;

use super::exit::USAGE;
use super::job_list::{Selection, as_flag};
use super::kind::Kind;
use super::output::{Format, print, print_value, table};
use super::{Connect, Failure};
use crate::api::proto::v1;
use crate::model::validate::quote;

/// Count jobs by queue, state, pool, region, outcome or label.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir count jobs\n  weir count jobs --by queue,state\n  weir count jobs --all --by outcome,region --since 1d\n  weir count jobs --state failed --by label:team -o json\n\nWithout --queue, or with the default queue, jobs of all queues are counted. A job that runs in two pools counts\nin both."
)]
pub struct Count {
    /// What is counted: jobs.
    what: String,
    /// What to count by, several separated by commas: queue, state, pool, region, outcome, label:KEY. At most 4.
    #[arg(long, value_name = "DIMENSION", value_delimiter = ',', value_parser = parse_by)]
    by: Vec<Dimension>,
    /// Include jobs that have ended.
    #[arg(long, short)]
    all: bool,
    #[command(flatten)]
    selection: Selection,
    /// Only jobs that run, or ran, in these pools, comma-separated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pool: Vec<String>,
    /// Output format: table, json, yaml.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// What jobs are counted by, as users write it.
#[derive(Clone, Debug)]
struct Dimension {
    name: String,
    by: v1::count_by::By,
}

fn parse_by(text: &str) -> Result<Dimension, String> {
    let by = match text {
        "queue" => v1::CountDimension::Queue,
        "state" | "phase" => v1::CountDimension::Phase,
        "pool" => v1::CountDimension::Pool,
        "region" => v1::CountDimension::Region,
        "outcome" => v1::CountDimension::Outcome,
        text => match text.strip_prefix("label:") {
            Some(key) if !key.is_empty() => {
                return Ok(Dimension { name: key.to_owned(), by: v1::count_by::By::Label(key.to_owned()) });
            }
            _ => return Err("use queue, state, pool, region, outcome or label:KEY".to_owned()),
        },
    };
    Ok(Dimension { name: text.to_owned(), by: v1::count_by::By::Dimension(by.into()) })
}

impl Count {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        if Kind::parse(&self.what) != Some(Kind::Jobs) {
            let message = format!("{} can't be counted: use jobs", quote(&self.what));
            return Err(Failure::new(USAGE, message));
        }
        let filter = self.selection.filter(&connect.queue, &self.pool, self.all)?;
        let by = self.by.iter().map(|dimension| v1::CountBy { by: Some(dimension.by.clone()) });
        let request = v1::CountJobsRequest { filter: Some(filter.message), by: by.collect() };
        let counted = connect.client()?.jobs().count_jobs(request).await;
        let counts =
            counted.map_err(|status| Failure::from(status).with_fields(as_flag))?.into_inner().counts;
        match self.output {
            Format::Json | Format::Yaml => {
                let value = |count: &v1::JobCount| {
                    let by = self.by.iter().zip(&count.values);
                    let by = by.map(|(dimension, value)| (dimension.name.clone(), json!(value)));
                    let mut fields: serde_json::Map<String, serde_json::Value> = by.collect();
                    fields.insert("jobs".to_owned(), json!(count.count));
                    serde_json::Value::Object(fields)
                };
                print_value(self.output, counts.iter().map(value).collect())?;
            }
            Format::Table | Format::Wide | Format::Name => {
                let heading = self.by.iter().map(|dimension| dimension.name.to_uppercase());
                let mut rows = vec![heading.chain(["JOBS".to_owned()]).collect::<Vec<_>>()];
                if counts.is_empty() && self.by.is_empty() {
                    rows.push(vec!["0".to_owned()]);
                }
                rows.extend(counts.iter().map(|count| {
                    let shown =
                        |value: &String| if value.is_empty() { "-".to_owned() } else { value.clone() };
                    count.values.iter().map(shown).chain([count.count.to_string()]).collect()
                }));
                print(&table(&rows))?;
            }
        }
        Ok(0)
    }
}

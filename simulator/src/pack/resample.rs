//! Resamples a trace's task list with other weights, to evaluate a policy on mixes that it was not tuned for.

use anyhow::{Context, bail};
use weir::model::limit::DEVICE_MILLIS;
use weir::scheduler::packing::random::Random;

use crate::traces::openb::Task;

/// Weight of each class of tasks, relative to its share of the list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    /// Tasks without a GPU.
    cpu: f64,
    /// Tasks with a fraction of a GPU.
    part: f64,
    /// Tasks with one whole GPU.
    one: f64,
    /// Tasks with several GPUs.
    multi: f64,
}

impl std::str::FromStr for Weights {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut weights = Self { cpu: 1.0, part: 1.0, one: 1.0, multi: 1.0 };
        for pair in text.split(',') {
            let (class, factor) =
                pair.split_once('=').with_context(|| format!("{pair:?}: must be CLASS=FACTOR"))?;
            let factor: f64 =
                factor.parse().with_context(|| format!("{pair:?}: {factor:?} is not a number"))?;
            if !(0.0..=1_000.0).contains(&factor) {
                bail!("{pair:?}: a factor must be 0 to 1,000");
            }
            match class {
                "cpu" => weights.cpu = factor,
                "part" => weights.part = factor,
                "one" => weights.one = factor,
                "multi" => weights.multi = factor,
                _ => bail!("{class:?}: must be cpu, part, one or multi"),
            }
        }
        Ok(weights)
    }
}

impl Weights {
    fn of(self, task: &Task) -> f64 {
        match (task.gpu_count, task.gpu_millis) {
            (0, _) => self.cpu,
            (1, millis) if millis < DEVICE_MILLIS => self.part,
            (1, _) => self.one,
            _ => self.multi,
        }
    }
}

/// Samples as many tasks as the list has, with replacement and these weights. A task that is sampled again
/// gets a suffix with a number.
///
/// # Errors
/// If all tasks have the weight 0.
pub(super) fn resample(tasks: &[Task], weights: Weights, seed: u64) -> anyhow::Result<Vec<Task>> {
    let mut sums = Vec::with_capacity(tasks.len());
    let mut sum = 0u64;
    for task in tasks {
        // Integer thousandths, so that the sample is the same on all machines.
        sum += (weights.of(task) * 1_000.0).round() as u64;
        sums.push(sum);
    }
    if sum == 0 {
        bail!("--resample leaves no task: all tasks of the list have the factor 0");
    }
    let (mut random, mut uses) = (Random::new(seed), vec![0u32; tasks.len()]);
    let sample = |_: &Task| {
        let sampled = random.below(sum);
        let at = sums.partition_point(|sum| *sum <= sampled);
        uses[at] += 1;
        let name = match uses[at] {
            1 => tasks[at].name.clone(),
            times => format!("{}-sampled-{}", tasks[at].name, times - 1),
        };
        Task { name, ..tasks[at].clone() }
    };
    Ok(tasks.iter().map(sample).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str, gpu_count: u32, gpu_millis: u32) -> Task {
        Task {
            name: name.to_owned(),
            cpu_millis: 1,
            memory_bytes: 1,
            gpu_count,
            gpu_millis,
            models: Vec::new(),
            created_s: 0,
            duration_s: 0,
        }
    }

    #[test]
    fn classes_are_sampled_by_their_weights_with_distinct_names() {
        let mut tasks: Vec<Task> = (0..300).map(|at| task(&format!("one-{at}"), 1, 1_000)).collect();
        tasks.extend((0..100).map(|at| task(&format!("multi-{at}"), 4, 1_000)));
        tasks.extend((0..100).map(|at| task(&format!("part-{at}"), 1, 500)));
        let resampled = resample(&tasks, "multi=6,part=0".parse().unwrap(), 3).unwrap();
        let count = |class: &str| resampled.iter().filter(|task| task.name.starts_with(class)).count();
        assert_eq!((resampled.len(), count("part")), (500, 0));
        // Weights 300 and 600: a third of the sample has one GPU, two thirds have several.
        assert!((300..370).contains(&count("multi")), "{}", count("multi"));
        let names: std::collections::BTreeSet<&String> = resampled.iter().map(|task| &task.name).collect();
        assert_eq!(names.len(), 500);
        assert_eq!(resampled, resample(&tasks, "multi=6,part=0".parse().unwrap(), 3).unwrap());
        assert_ne!(resampled, resample(&tasks, "multi=6,part=0".parse().unwrap(), 4).unwrap());
    }

    #[test]
    fn error_names_the_bad_weight() {
        for (text, expected) in [
            ("multi", "must be CLASS=FACTOR"),
            ("multi=many", "\"many\" is not a number"),
            ("one=-1", "must be 0 to 1,000"),
            ("one=NaN", "must be 0 to 1,000"),
            ("gpu=1", "must be cpu, part, one or multi"),
        ] {
            let error = format!("{:#}", text.parse::<Weights>().unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let none = resample(&[task("t", 1, 1_000)], "one=0".parse().unwrap(), 0);
        assert!(none.unwrap_err().to_string().contains("leaves no task"));
    }
}

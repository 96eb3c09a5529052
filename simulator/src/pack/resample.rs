//! Draws another task list from a trace's, so that a policy can be judged by mixes that it wasn't made on.

use anyhow::{Context, bail};
use weir::model::limit::DEVICE_MILLIS;
use weir::scheduler::packing::random::Random;

use crate::traces::openb::Task;

/// How often tasks of each class are drawn, next to how often they are in the list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    /// Without a GPU.
    cpu: f64,
    /// A part of a GPU.
    part: f64,
    one: f64,
    /// Several GPUs.
    multi: f64,
}

impl std::str::FromStr for Weights {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut weights = Self { cpu: 1.0, part: 1.0, one: 1.0, multi: 1.0 };
        for pair in text.split(',') {
            let (class, factor) =
                pair.split_once('=').with_context(|| format!("{pair:?}: write CLASS=FACTOR"))?;
            let factor: f64 = factor.parse().with_context(|| format!("{pair:?}: {factor:?} is no number"))?;
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

/// As many tasks as there are, drawn from them with these weights; those drawn again get a suffix.
///
/// # Errors
/// If no task has a weight.
pub(super) fn resample(tasks: &[Task], weights: Weights, seed: u64) -> anyhow::Result<Vec<Task>> {
    let mut sums = Vec::with_capacity(tasks.len());
    let mut sum = 0u64;
    for task in tasks {
        // In thousandths, so that all machines draw the same.
        sum += (weights.of(task) * 1_000.0).round() as u64;
        sums.push(sum);
    }
    if sum == 0 {
        bail!("--resample leaves no task: all that are in the list have the factor 0");
    }
    let (mut random, mut seen) = (Random::new(seed), vec![0u32; tasks.len()]);
    let draw = |_: &Task| {
        let drawn = random.below(sum);
        let at = sums.partition_point(|sum| *sum <= drawn);
        seen[at] += 1;
        let name = match seen[at] {
            1 => tasks[at].name.clone(),
            times => format!("{}-drawn-{}", tasks[at].name, times - 1),
        };
        Task { name, ..tasks[at].clone() }
    };
    Ok(tasks.iter().map(draw).collect())
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
    fn classes_are_drawn_by_their_weights_under_names_of_their_own() {
        let mut tasks: Vec<Task> = (0..300).map(|at| task(&format!("one-{at}"), 1, 1_000)).collect();
        tasks.extend((0..100).map(|at| task(&format!("multi-{at}"), 4, 1_000)));
        tasks.extend((0..100).map(|at| task(&format!("part-{at}"), 1, 500)));
        let drawn = resample(&tasks, "multi=6,part=0".parse().unwrap(), 3).unwrap();
        let count = |class: &str| drawn.iter().filter(|task| task.name.starts_with(class)).count();
        assert_eq!((drawn.len(), count("part")), (500, 0));
        // Two thirds are to be of the one, a third of the other.
        assert!((300..370).contains(&count("multi")), "{}", count("multi"));
        let names: std::collections::BTreeSet<&String> = drawn.iter().map(|task| &task.name).collect();
        assert_eq!(names.len(), 500);
        assert_eq!(drawn, resample(&tasks, "multi=6,part=0".parse().unwrap(), 3).unwrap());
        assert_ne!(drawn, resample(&tasks, "multi=6,part=0".parse().unwrap(), 4).unwrap());
    }

    #[test]
    fn what_is_no_weight_is_told() {
        for (text, said) in [
            ("multi", "write CLASS=FACTOR"),
            ("multi=many", "\"many\" is no number"),
            ("one=-1", "must be 0 to 1,000"),
            ("one=NaN", "must be 0 to 1,000"),
            ("gpu=1", "must be cpu, part, one or multi"),
        ] {
            let error = format!("{:#}", text.parse::<Weights>().unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        let none = resample(&[task("t", 1, 1_000)], "one=0".parse().unwrap(), 0);
        assert!(none.unwrap_err().to_string().contains("leaves no task"));
    }
}

//! The order and the columns of a list, as users choose them.

use super::list::List;
use crate::cli::Failure;
use crate::cli::exit::USAGE;
use crate::model::validate::quote;

impl<T> List<T> {
    /// Sorts objects by `KEY`, or in the other direction by `-KEY`. Equal ones stay in their order.
    ///
    /// # Errors
    /// If objects of this type can't be sorted by it.
    pub(super) fn sort(&self, by: Option<&str>, objects: &mut [T]) -> Result<(), Failure> {
        let Some(by) = by else { return Ok(()) };
        let name = by.strip_prefix('-').unwrap_or(by);
        let Some((_, key)) = self.keys.iter().find(|(other, _)| *other == name) else {
            let keys: Vec<&str> = self.keys.iter().map(|(name, _)| *name).collect();
            let message = format!("--sort {}: use {}", quote(name), keys.join(", "));
            return Err(Failure::new(USAGE, message));
        };
        if by.starts_with('-') {
            objects.sort_by_cached_key(|object| std::cmp::Reverse(key(object)));
        } else {
            objects.sort_by_cached_key(key);
        }
        Ok(())
    }
}

impl<T: 'static> List<T> {
    /// Leaves only these columns of the table, in this order. None leaves all.
    ///
    /// # Errors
    /// If there is no such column.
    pub(super) fn with_columns(mut self, columns: &[String]) -> Result<Self, Failure> {
        if columns.is_empty() {
            return Ok(self);
        }
        let find = |column: &String| {
            let found = self.heading.iter().position(|title| title.eq_ignore_ascii_case(column));
            found.ok_or_else(|| {
                let all = self.heading.join(", ");
                Failure::new(USAGE, format!("--columns {}: use {all}", quote(column)))
            })
        };
        let chosen = columns.iter().map(find).collect::<Result<Vec<usize>, _>>()?;
        self.heading = chosen.iter().map(|at| self.heading[*at].clone()).collect();
        let row = self.row;
        self.row = Box::new(move |object| {
            let cells = row(object);
            chosen.iter().map(|at| cells[*at].clone()).collect()
        });
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::get::key::Key;

    fn list() -> List<(u64, &'static str)> {
        List {
            heading: ["NAME", "SIZE"].map(str::to_owned).to_vec(),
            row: Box::new(|(size, name)| vec![(*name).to_owned(), size.to_string()]),
            name: |(_, name)| (*name).to_owned(),
            key: |(_, name)| (*name).to_owned(),
            value: |_| Ok(serde_json::Value::Null),
            keys: vec![
                ("size", |(size, _)| Key::of(Some(*size).filter(|size| *size > 0))),
                ("name", |(_, name)| Key::text(name)),
            ],
        }
    }

    #[test]
    fn objects_are_sorted_by_value_in_either_direction_and_absent_values_are_the_lowest() {
        let objects = [(9, "b"), (10, "a"), (0, "c"), (9, "d")];
        let sorted = |by: Option<&str>| {
            let mut objects = objects;
            list().sort(by, &mut objects).map_err(|failure| failure.message)?;
            Ok::<_, String>(objects.map(|(_, name)| name).concat())
        };
        assert_eq!(sorted(None).as_deref(), Ok("bacd"));
        assert_eq!(sorted(Some("size")).as_deref(), Ok("cbda"));
        assert_eq!(sorted(Some("-size")).as_deref(), Ok("abdc"));
        assert_eq!(sorted(Some("-name")).as_deref(), Ok("dcba"));
        assert_eq!(sorted(Some("SIZE")), Err("--sort \"SIZE\": use size, name".to_owned()));
    }

    #[test]
    fn columns_are_chosen_by_their_titles() {
        let Ok(chosen) = list().with_columns(&["size".to_owned(), "NAME".to_owned()]) else {
            panic!("columns")
        };
        assert_eq!(chosen.heading, ["SIZE", "NAME"]);
        assert_eq!((chosen.row)(&(9, "b")), ["9", "b"]);
        let wrong = list().with_columns(&["age".to_owned()]).err().expect("no such column");
        assert_eq!(wrong.message, "--columns \"age\": use NAME, SIZE");
    }
}

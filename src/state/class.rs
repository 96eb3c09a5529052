//! Shapes and classes: waiting units that are alike, in the order they were submitted. Derived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::id::JobId;
use crate::model::shape::{ClassKey, Shape, ShapeId};

/// The shapes in use, numbered.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    by_id: BTreeMap<ShapeId, (Arc<Shape>, u32)>,
    by_shape: BTreeMap<Arc<Shape>, ShapeId>,
    next: u32,
}

impl Shapes {
    /// Numbers a shape, counting one more user of it.
    pub fn acquire(&mut self, shape: Shape) -> ShapeId {
        if let Some(id) = self.by_shape.get(&shape).copied() {
            if let Some(entry) = self.by_id.get_mut(&id) {
                entry.1 += 1;
            }
            return id;
        }
        let (id, shape) = (ShapeId(self.next), Arc::new(shape));
        self.next += 1;
        self.by_id.insert(id, (shape.clone(), 1));
        self.by_shape.insert(shape, id);
        id
    }

    /// Counts one user less; the last one takes the shape away.
    pub fn release(&mut self, id: ShapeId) {
        let Some(entry) = self.by_id.get_mut(&id) else { return };
        entry.1 -= 1;
        if entry.1 == 0
            && let Some((shape, _)) = self.by_id.remove(&id)
        {
            self.by_shape.remove(&shape);
        }
    }

    /// The shape of a number in use.
    pub fn get(&self, id: ShapeId) -> Option<&Arc<Shape>> {
        self.by_id.get(&id).map(|(shape, _)| shape)
    }
}

/// Unit groups with waiting units, by class, in submission order.
pub type Classes = BTreeMap<ClassKey, BTreeSet<(JobId, u16)>>;

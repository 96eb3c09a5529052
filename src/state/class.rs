//! Shapes and classes: waiting units that are alike, in the order they were submitted. Derived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::record;
use crate::model::demand::{Demand, DeviceDemand};
use crate::model::device::DeviceModelId;
use crate::model::id::JobId;
use crate::model::shape::{ClassKey, Shape, ShapeDigest, ShapeId};
use crate::model::spec::TaskRequest;

/// The demands of a shape's tasks, each with the number of tasks per unit.
pub type Demands = Arc<[(Arc<Demand>, u32)]>;

/// The numbers of device models, by their names.
pub type ModelIds = BTreeMap<String, DeviceModelId>;

/// The demand of a shape's task, with device models as catalogue ids. A job that names a model that the catalogue
/// lacks is refused, so a shape in use has none.
pub fn demand_of(models: &ModelIds, request: &TaskRequest, shape: &Shape) -> Demand {
    let devices = request.devices.as_ref().map(|asked| {
        let mut known: Vec<_> = asked.models.iter().filter_map(|name| models.get(name).copied()).collect();
        known.sort_unstable();
        let models = (!asked.models.is_empty()).then_some(known);
        DeviceDemand { models, amount: asked.amount }
    });
    let (constraints, needs) = (shape.constraints.clone(), shape.needs);
    Demand { resources: request.resources.clone(), devices, constraints, needs }
}

fn demands_of(models: &ModelIds, shape: &Shape) -> Demands {
    let demand =
        |(request, count): &(TaskRequest, u32)| (Arc::new(demand_of(models, request, shape)), *count);
    shape.tasks.iter().map(demand).collect()
}

#[derive(Clone, Debug)]
struct InUse {
    shape: Arc<Shape>,
    demands: Demands,
    digest: ShapeDigest,
    users: u32,
}

/// The shapes in use, numbered.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    by_id: BTreeMap<ShapeId, InUse>,
    by_shape: BTreeMap<Arc<Shape>, ShapeId>,
    next: u32,
}

impl Shapes {
    /// Numbers a shape, counting one more user of it.
    pub fn acquire(&mut self, shape: Shape, models: &ModelIds) -> ShapeId {
        if let Some(id) = self.by_shape.get(&shape).copied() {
            if let Some(entry) = self.by_id.get_mut(&id) {
                entry.users += 1;
            }
            return id;
        }
        let (id, digest, shape) = (ShapeId(self.next), record::shape_digest(&shape), Arc::new(shape));
        self.next += 1;
        let demands = demands_of(models, &shape);
        self.by_id.insert(id, InUse { shape: shape.clone(), demands, digest, users: 1 });
        self.by_shape.insert(shape, id);
        id
    }

    /// Counts one user less; returns what the shape was called if that was the last.
    pub fn release(&mut self, id: ShapeId) -> Option<ShapeDigest> {
        let entry = self.by_id.get_mut(&id)?;
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        let InUse { shape, digest, .. } = self.by_id.remove(&id)?;
        self.by_shape.remove(&shape);
        Some(digest)
    }

    /// The shape of a number in use.
    pub fn get(&self, id: ShapeId) -> Option<&Arc<Shape>> {
        self.by_id.get(&id).map(|entry| &entry.shape)
    }

    /// The demands of the tasks of a shape in use.
    pub fn demands(&self, id: ShapeId) -> Option<&Demands> {
        self.by_id.get(&id).map(|entry| &entry.demands)
    }

    /// The lasting name of a number in use.
    pub fn digest(&self, id: ShapeId) -> Option<ShapeDigest> {
        self.by_id.get(&id).map(|entry| entry.digest)
    }
}

/// Unit groups with waiting units, by class, in submission order.
pub type Classes = BTreeMap<ClassKey, BTreeSet<(JobId, u16)>>;

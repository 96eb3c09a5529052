//! Decides on what capacity costs, how regions are linked, and what is reserved.

use super::Decision;
use crate::model::id::{PoolId, ReservationId};
use crate::model::limit::{
    CONSTRAINT_LIST_MAX, DURATION_MS_MAX, LINK_BITS_PER_S_MAX, LINK_ROUND_TRIP_MICROS_MAX, MICROS_MAX,
    PRICES_PER_POOL_MAX, RATES_MAX, RESERVATIONS_MAX,
};
use crate::model::link::Link;
use crate::model::price::{Price, PriceSchedule};
use crate::model::reservation::Reservation;
use crate::model::time::Timestamp;
use crate::model::validate::{Violations, quote};
use crate::state::State;
use crate::state::event::Event;
use crate::state::rejection::Rejection;

/// Minutes of a day.
const DAY_MINUTES: u16 = 1_440;

impl State {
    /// Prices begin at `valid_from`, or now if that is past: what has been used is not repriced.
    pub(super) fn decide_set_prices(
        &self,
        now: Timestamp,
        id: PoolId,
        valid_from: Timestamp,
        schedule: &PriceSchedule,
    ) -> Result<Decision, Rejection> {
        let pool = self.pool_or_reject(id)?;
        let mut out = Violations::default();
        if schedule.currency.len() != 3 || !schedule.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            let rule = "is not three capital letters as in ISO 4217";
            out.push("schedule.currency", format!("{} {rule}", quote(&schedule.currency)));
        }
        out.list_len("schedule.rates", schedule.rates.len(), RATES_MAX);
        for (index, rate) in schedule.rates.iter().enumerate() {
            let field = format!("schedule.rates[{index}]");
            out.range(&format!("{field}.micros_per_hour"), rate.micros_per_hour, 0, MICROS_MAX);
            out.range(&format!("{field}.from_minute"), rate.from_minute, 0, DAY_MINUTES - 1);
            out.range(&format!("{field}.to_minute"), rate.to_minute, 1, DAY_MINUTES);
            if !rate.model.is_empty() && self.model_named(&rate.model).is_none() {
                let unknown = format!("device model {} is not known", quote(&rate.model));
                out.push(format!("{field}.model"), unknown);
            }
        }
        out.finish().map_err(Rejection::Invalid)?;
        let versions = self.prices_of(id);
        if versions.clone().count() >= PRICES_PER_POOL_MAX {
            return Err(Rejection::LimitReached { what: "prices of one pool", max: PRICES_PER_POOL_MAX });
        }
        let (last, version) = versions.last().map_or_else(Default::default, |p| (p.valid_from, p.version));
        let valid_from = valid_from.max(now);
        if version > 0 && valid_from <= last {
            let name = format!("prices of {}", pool.spec.name);
            return Err(Rejection::AlreadyExists { kind: "later or equal", name });
        }
        let price = Price { pool: id, valid_from, version: version + 1, schedule: schedule.clone() };
        Ok(Decision::done(vec![Event::PricesSet { price }]))
    }

    pub(super) fn decide_set_link(&self, link: &Link) -> Result<Decision, Rejection> {
        let mut out = Violations::default();
        for region in [link.ends.0, link.ends.1] {
            if !self.catalogue.regions.contains_key(&region) {
                out.push("link.ends", format!("region {region} does not exist"));
            }
        }
        if link.ends.0 == link.ends.1 {
            out.push("link.ends", format!("{} twice: a link joins two regions", link.ends.0));
        }
        out.range("link.bandwidth_bits_per_s", link.bandwidth_bits_per_s, 1, LINK_BITS_PER_S_MAX);
        out.range("link.round_trip_micros", link.round_trip_micros, 0, LINK_ROUND_TRIP_MICROS_MAX);
        out.range("link.micros_per_gb", link.micros_per_gb, 0, MICROS_MAX);
        out.finish().map_err(Rejection::Invalid)?;
        let ends = (link.ends.0.min(link.ends.1), link.ends.0.max(link.ends.1));
        let link = Link { ends, ..*link };
        let changed = self.link(ends.0, ends.1) != Some(&link);
        Ok(Decision::done(changed.then_some(Event::LinkSet { link }).into_iter().collect()))
    }

    /// The reservation's number is the broker's to give.
    pub(super) fn decide_reserve(&self, now: Timestamp, wanted: &Reservation) -> Result<Decision, Rejection> {
        if self.queue(wanted.queue).is_none() {
            return Err(Rejection::NotFound { kind: "queue", name: wanted.queue.to_string() });
        }
        if let Some(pool) = wanted.pool {
            self.pool_or_reject(pool)?;
        }
        let mut out = Violations::default();
        let length_ms = wanted.until.ms_since(wanted.from.max(now));
        out.range("reservation.until", length_ms, 1, DURATION_MS_MAX);
        out.range("reservation.from", wanted.from.ms_since(now), 0, DURATION_MS_MAX);
        if wanted.amounts == Default::default() {
            out.push("reservation.amounts", "nothing is asked for");
        }
        out.list_len("reservation.models", wanted.models.len(), CONSTRAINT_LIST_MAX);
        for model in wanted.models.iter().filter(|model| self.model_named(model).is_none()) {
            out.push("reservation.models", format!("device model {} is not known", quote(model)));
        }
        out.finish().map_err(Rejection::Invalid)?;
        if self.market.reservations.len() >= RESERVATIONS_MAX {
            return Err(Rejection::LimitReached { what: "reservations", max: RESERVATIONS_MAX });
        }
        let id = ReservationId(self.next.reservation.max(1));
        let reservation = Reservation { id, from: wanted.from.max(now), ..wanted.clone() };
        Ok(Decision::done(vec![Event::ReservationMade { reservation }]))
    }

    pub(super) fn decide_end_reservation(&self, id: ReservationId) -> Result<Decision, Rejection> {
        if self.reservation(id).is_none() {
            return Err(Rejection::NotFound { kind: "reservation", name: id.to_string() });
        }
        Ok(Decision::done(vec![Event::ReservationEnded { reservation: id }]))
    }
}

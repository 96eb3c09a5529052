//! Folds prices, links and reservations.

use crate::model::id::ReservationId;
use crate::model::link::Link;
use crate::model::price::Price;
use crate::model::reservation::Reservation;
use crate::state::snapshot::Key;
use crate::state::{State, Timer};

impl State {
    pub(super) fn set_prices(&mut self, price: &Price) {
        let key = (price.pool, price.valid_from);
        self.touch(Key::Price(key));
        let before = self.prices.insert(key, price.clone());
        assert!(before.is_none(), "pool {} has two prices from {}", price.pool, price.valid_from);
    }

    pub(super) fn set_link(&mut self, link: &Link) {
        self.touch(Key::Link(link.ends));
        self.links.insert(link.ends, *link);
    }

    pub(super) fn make_reservation(&mut self, reservation: &Reservation) {
        let id = reservation.id;
        assert!(id.0 >= self.next_reservation, "reservation {id} is made twice");
        self.touch(Key::Reservation(id));
        self.next_reservation = id.0 + 1;
        self.derived.timers.insert((reservation.until, Timer::EndReservation(id)));
        self.reservations.insert(id, reservation.clone());
    }

    pub(super) fn end_reservation(&mut self, id: ReservationId) {
        self.touch(Key::Reservation(id));
        let Some(ended) = self.reservations.remove(&id) else {
            panic!("reservation {id} ends but is not there")
        };
        self.derived.timers.remove(&(ended.until, Timer::EndReservation(id)));
    }
}

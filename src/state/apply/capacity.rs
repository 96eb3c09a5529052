//! Folds prices, links and reservations.

use crate::model::id::ReservationId;
use crate::model::link::Link;
use crate::model::price::Price;
use crate::model::reservation::Reservation;
use crate::state::State;
use crate::state::index::timers::Timer;
use crate::state::snapshot::Key;

impl State {
    pub(super) fn set_prices(&mut self, price: &Price) {
        let key = (price.pool, price.valid_from);
        self.touch(Key::Price(key));
        let before = self.market.prices.insert(key, price.clone());
        assert!(before.is_none(), "pool {} has two prices from {}", price.pool, price.valid_from);
    }

    pub(super) fn set_link(&mut self, link: &Link) {
        self.touch(Key::Link(link.ends));
        self.market.links.insert(link.ends, *link);
    }

    pub(super) fn make_reservation(&mut self, reservation: &Reservation) {
        let id = reservation.id;
        assert!(id.0 >= self.next.reservation, "reservation {id} is made twice");
        self.touch(Key::Reservation(id));
        self.next.reservation = id.0 + 1;
        self.index.timers.insert((reservation.until, Timer::EndReservation(id)));
        self.market.reservations.insert(id, reservation.clone());
    }

    pub(super) fn end_reservation(&mut self, id: ReservationId) {
        self.touch(Key::Reservation(id));
        let Some(ended) = self.market.reservations.remove(&id) else {
            panic!("reservation {id} ends but is not there")
        };
        self.index.timers.remove(&(ended.until, Timer::EndReservation(id)));
    }
}

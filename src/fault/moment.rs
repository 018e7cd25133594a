//! What a test does at a moment of somebody else's work: between two steps of which the order matters.

use std::cell::RefCell;

struct Planned {
    moment: &'static str,
    action: Box<dyn FnOnce()>,
}

thread_local! {
    static PLANNED: RefCell<Vec<Planned>> = const { RefCell::new(Vec::new()) };
}

/// Once, when this thread gets there next.
pub(crate) fn at(moment: &'static str, action: impl FnOnce() + 'static) {
    PLANNED.with_borrow_mut(|planned| planned.push(Planned { moment, action: Box::new(action) }));
}

/// This thread is there.
pub(crate) fn passes(moment: &'static str) {
    let planned = PLANNED.with_borrow_mut(|planned| {
        let at = planned.iter().position(|planned| planned.moment == moment)?;
        Some(planned.remove(at))
    });
    if let Some(planned) = planned {
        (planned.action)();
    }
}

//! Room for the audit logs, as an attach process watches it.

use crate::serve::supervise::Supervision;
use crate::status::{EventKind, Reason};
use vault::audit::Space;

impl Supervision {
    /// Tells when there is little room for the audit logs, and when there is room again.
    pub(crate) fn watch_space(&mut self, was_low: &mut bool) {
        let Ok(space) = Space::at(&self.place.state_dir) else {
            return;
        };
        let event = match (space.is_low(), std::mem::replace(was_low, space.is_low())) {
            (true, false) => EventKind::AuditSpaceLow,
            (false, true) => EventKind::AuditSpaceOk,
            _ => return,
        };
        let reason = (event == EventKind::AuditSpaceLow).then(|| Reason {
            code: "AuditSpaceLow".into(),
            message: space.warning(&self.place.state_dir),
        });
        self.tell(event, reason);
    }
}

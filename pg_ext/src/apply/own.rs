//! Reading and writing the tables of schema `duplex`, and acting as another role.
//!
//! The relay's role may only execute functions. What needs more is done below permission checks, as the role that owns
//! what is touched, and never with a search path that the session chose.

use pgrx::pg_sys;

/// The role and security context of the session, to be put back. An error needs no putting back: aborting the
/// transaction or subtransaction does it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    user: pg_sys::Oid,
    context: i32,
}

impl Identity {
    /// Who the session acts as now.
    pub(crate) fn current() -> Self {
        let mut this = Self { user: pg_sys::InvalidOid, context: 0 };
        // SAFETY: both outputs are valid for writing.
        unsafe { pg_sys::GetUserIdAndSecContext(&mut this.user, &mut this.context) };
        this
    }

    /// Acts as this again.
    pub(crate) fn restore(self) {
        // SAFETY: the pair was read from the session itself.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }

    /// Acts as `owner` in a security-restricted operation, so that code of the owner's (triggers, functions in
    /// indexes and constraints) can neither use the relay's rights nor leave anything behind in the session.
    pub(crate) fn act_as(self, owner: pg_sys::Oid) {
        let context =
            self.context | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION).cast_signed();
        // SAFETY: a plain call; the caller puts the identity back.
        unsafe { pg_sys::SetUserIdAndSecContext(owner, context) };
    }

    /// Runs `f`, which runs no code of a user's, as the same role outside of the restricted operation.
    pub(crate) fn unrestricted(f: impl FnOnce()) {
        let restricted = Self::current();
        let context = restricted.context & !pg_sys::SECURITY_RESTRICTED_OPERATION.cast_signed();
        // SAFETY: put back below, or by the abort that an error leads to.
        unsafe { pg_sys::SetUserIdAndSecContext(restricted.user, context) };
        f();
        restricted.restore();
    }
}

/// Runs `f`, which uses SPI on tables of schema `duplex`, as the bootstrap superuser and with a safe search path.
pub(crate) fn with_own_tables<R>(f: impl FnOnce() -> R) -> R {
    let identity = Identity::current();
    identity.act_as(pg_sys::Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID));
    // SAFETY: the nest level is closed below, or by the abort that an error leads to.
    let level = unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        level
    };
    let result = f();
    // SAFETY: the level opened above.
    unsafe { pg_sys::AtEOXact_GUC(true, level) };
    identity.restore();
    result
}

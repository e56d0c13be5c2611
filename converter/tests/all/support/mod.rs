//! What tests share.

pub(crate) mod batch;
pub(crate) mod decoder;
pub(crate) mod home;
pub(crate) mod hub_server;
pub(crate) mod models;
pub(crate) mod ort;
pub(crate) mod schema;
pub(crate) mod sealed;
pub(crate) mod served;
pub(crate) mod spelling;
pub(crate) mod without_runtime;

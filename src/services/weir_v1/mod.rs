//! The services of `weir.v1`.

mod documents;
mod files;
mod instances;
mod publisher;
mod rooms;

use tonic::service::Routes;

use super::Core;

/// Adds them all.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let routes = publisher::add(routes, core);
    let routes = rooms::add(routes, core);
    let routes = files::add(routes, core);
    let routes = instances::add(routes, core);
    documents::add(routes, core)
}

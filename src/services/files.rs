//! Uploads and downloads as every service with files speaks them.

mod download;
mod upload;

pub(super) use self::{
    download::download,
    upload::{Meta, Part, receive},
};

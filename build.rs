//! Compiles the protos with `protox`, so that no `protoc` has to be installed, and keeps their descriptors for reflection.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: &[&str] = &[
    "proto/chat.proto",
    "proto/feedback.proto",
    "proto/helloworld.proto",
    "proto/streaming.proto",
    "proto/streaming/v1/streaming.proto",
    "proto/weir/v1/documents.proto",
    "proto/weir/v1/feedback.proto",
    "proto/weir/v1/files.proto",
    "proto/weir/v1/instances.proto",
    "proto/weir/v1/publisher.proto",
    "proto/weir/v1/rooms.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(PROTOS.iter().map(|path| path.trim_start_matches("proto/")))?
        .file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

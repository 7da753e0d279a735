//! Faults under load: several replicas of the real binary on real NATS servers, behind what a Kubernetes Service does,
//! with the product's own clients. Nothing acknowledged may be lost or come twice, and every subscriber hears one order.
//!
//! `WEIR_FAULTS_LOAD` multiplies subscribers' and publishers' numbers (default 1), for a machine with more cores.
//! `WEIR_CHAOS_ROUNDS` says how many pairs of random faults there are; `WEIR_CHAOS_SEED` repeats a run.

mod balancer;
mod chaos;
mod deploys;
mod fleet;
mod load;
mod network;
mod outages;
mod partition;
mod report;

//! The Ramkeep backup: frames that hold replicas.

//! Operators of Stable Diffusion 1.5: `conv BATCH IN HEIGHT WIDTH OUT KERNEL STRIDE`, `linear ROWS IN OUT`,
//! `attention BATCH QUERIES KEYS HEADS HEAD_SIZE`.

/// The UNet's at 512 px and batch 2, then the VAE decoder's.
pub(crate) const ALL: &str = "\
conv 2 320 64 64 320 3 1
conv 2 640 64 64 320 3 1
conv 2 960 64 64 320 3 1
conv 2 640 64 64 640 3 1
conv 2 320 32 32 640 3 1
conv 2 640 32 32 640 3 1
conv 2 960 32 32 640 3 1
conv 2 1280 32 32 640 3 1
conv 2 1920 32 32 640 3 1
conv 2 1280 32 32 1280 3 1
conv 2 640 16 16 1280 3 1
conv 2 1280 16 16 1280 3 1
conv 2 1920 16 16 1280 3 1
conv 2 2560 16 16 1280 3 1
conv 2 1280 8 8 1280 3 1
conv 2 2560 8 8 1280 3 1
conv 2 4 64 64 320 3 1
conv 2 320 64 64 4 3 1
conv 2 320 64 64 320 3 2
conv 2 640 32 32 640 3 2
conv 2 1280 16 16 1280 3 2
conv 2 320 64 64 320 1 1
conv 2 640 32 32 640 1 1
conv 2 1280 16 16 1280 1 1
conv 2 960 64 64 320 1 1
conv 2 1920 32 32 640 1 1
conv 2 2560 16 16 1280 1 1
linear 8192 320 320
linear 8192 320 2560
linear 8192 1280 320
linear 2048 640 640
linear 2048 640 5120
linear 2048 2560 640
linear 512 1280 1280
linear 512 1280 10240
linear 512 5120 1280
linear 154 768 320
linear 2 1280 1280
attention 2 4096 4096 8 40
attention 2 1024 1024 8 80
attention 2 256 256 8 160
attention 2 4096 77 8 40
attention 2 1024 77 8 80
attention 1 4096 4096 1 512
conv 1 512 64 64 512 3 1
conv 1 512 128 128 512 3 1
conv 1 512 256 256 512 3 1
conv 1 512 256 256 256 3 1
conv 1 256 256 256 256 3 1
conv 1 256 512 512 256 3 1
conv 1 256 512 512 128 3 1
conv 1 128 512 512 128 3 1
conv 1 128 512 512 3 3 1";

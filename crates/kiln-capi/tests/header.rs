//! `include/kiln.h` is what the functions are. `KILN_WRITE_HEADER=1 cargo test -p kiln-capi` writes it anew.

#[test]
fn the_header_is_what_the_functions_are() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(format!("{root}/cbindgen.toml")).expect("a configuration");
    let bindings = cbindgen::Builder::new().with_config(config).with_crate(root).generate().expect("a header");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");
    let path = format!("{root}/include/kiln.h");
    if std::env::var_os("KILN_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("a file");
    }
    let kept = std::fs::read_to_string(&path).expect("a header");
    assert!(kept == made, "include/kiln.h is out of date: KILN_WRITE_HEADER=1 cargo test -p kiln-capi");
}

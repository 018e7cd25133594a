#!/usr/bin/env bash
# Builds SQLite's `testfixture` and `mptest` from Debian's source package; prints the source folder. Needs root for apt.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${LITEFS_CACHE:-$here/../.cache}/sqlite
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
recipe=$(sha256sum "$here/build.sh" | cut -d' ' -f1)
if [ -x "$cache/source/testfixture" ] && [ -x "$cache/source/mptester" ] && [ "$(cat "$cache/source/recipe" 2>/dev/null)" = "$recipe" ]; then
  echo "$cache/source"
  exit 0
fi
"$here/../packages.sh" install dpkg-dev gcc libc6-dev make tcl tcl-dev
mirror=$("$here/../packages.sh" mirror)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
echo "deb-src $mirror $release main" >"$cache/apt/sources.list"
options=(-o "Dir::Etc::SourceList=$cache/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$cache/apt/lists" -o "Dir::Cache::Archives=$cache/apt/archives" -o APT::Sandbox::User=root)
cd "$cache"
apt-get "${options[@]}" -q update >&2
rm -rf sqlite3-* source
apt-get "${options[@]}" -q source sqlite3 >&2
mv sqlite3-*/ source
cd source
# `test.db-pos` is ours: tests that copy `test.db*` must not see it.
cat - test/tester.tcl >tester.tcl <<'TCL'
rename glob glob_all
proc glob args { lsearch -all -inline -not -glob [uplevel 1 [list glob_all {*}$args]] *-pos }
TCL
mv tester.tcl test/tester.tcl
# The tests move SQLite's lock bytes from 1 GiB to 64 KiB, for smaller files. No SQLite outside of them does, and the node takes its
# locks elsewhere than they do then. walthread, which switches modes under several writers, needs them where they are.
sed -i '/^source $testdir.lock_common.tcl/a sqlite3_test_control_pending_byte 0x40000000' test/walthread.test
grep -q '^sqlite3_test_control_pending_byte' test/walthread.test
./configure --enable-debug=no >"$cache/configure.log" 2>&1
make -j2 testfixture mptester >"$cache/make.log" 2>&1 || { tail -n 40 "$cache/make.log" >&2; exit 1; }
[ -x mptester ] || mv mptest mptester 2>/dev/null || true
echo "$recipe" >recipe
echo "$cache/source"

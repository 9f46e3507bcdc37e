#!/bin/bash
# pip install of a wheel into a venv
. "$(dirname "$0")/_lib.sh"
mkdir -p "$W/w/thing" "$W/w/thing-1.0.dist-info"
echo 'VALUE = 42' >"$W/w/thing/__init__.py"
for i in $(seq 30); do echo "X = $i" >"$W/w/thing/m$i.py"; done
printf 'Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n' >"$W/w/thing-1.0.dist-info/METADATA"
printf 'Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >"$W/w/thing-1.0.dist-info/WHEEL"
(cd "$W/w" && find . -type f -printf '%P,,\n' >thing-1.0.dist-info/RECORD && zip -qr ../thing-1.0-py3-none-any.whl .)
python3 -m venv --without-pip "$D/venv" || die venv
python3 -m pip --python "$D/venv/bin/python" install -q --no-index --disable-pip-version-check "$W/thing-1.0-py3-none-any.whl" || die "pip install"
[ "$("$D/venv/bin/python" -c 'import thing.m30; print(thing.VALUE + thing.m30.X)')" = 72 ] || die import
settle
[ "$("$O/venv/bin/python" -c 'import thing.m30; print(thing.VALUE + thing.m30.X, thing.__file__)')" = "72 $(readlink -f "$O")/venv/lib/$(ls "$O/venv/lib")/site-packages/thing/__init__.py" ] || die "import in the other mount"
python3 -m pip --python "$D/venv/bin/python" uninstall -qy --disable-pip-version-check thing || die "pip uninstall"
[ -z "$(find "$D/venv/lib/"*/site-packages -iname 'thing*')" ] || die "pip uninstall left files"
echo "ok $N"

# Sourced by tools/run, tools/test and tools/check: finds a Python and keeps a virtual environment up to date.
#
# Python, when an environment is made: $PYTHON if set; else the first of 3.11, 3.12, 3.13 and later that has venv and ensurepip, on the PATH or among
# pyenv's versions. 3.11 comes first because it is the oldest that is supported: what works there works later.
# The environment is touched only when pyproject.toml or the Python has changed since (a stamp file says).

say() { printf '%s\n' "$*" >&2; }

fail() { say "$*"; exit 1; }

# Every executable of a name on the PATH, then pyenv's: a shim or a system Python may be there and yet not usable.
candidates() {
    old_ifs=$IFS
    IFS=:
    for directory in $PATH; do
        IFS=$old_ifs
        for version in "$@"; do
            [ -x "$directory/python$version" ] && printf '%s\n' "$directory/python$version"
        done
    done
    IFS=$old_ifs
    for version in "$@"; do
        for found in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version"*/bin/python; do
            [ -x "$found" ] && printf '%s\n' "$found"
        done
    done
}

# is_usable PYTHON [VERSION]: at least 3.11, or exactly VERSION, and able to make a virtual environment.
is_usable() {
    "$1" - "${2:-}" <<'END' 2>/dev/null
import sys
wanted = sys.argv[1]
if sys.version_info < (3, 11) or wanted and "%d.%d" % sys.version_info[:2] != wanted:
    raise SystemExit(1)
import ensurepip, venv
END
}

# find_python [VERSION]: print the path of a usable Python, or nothing.
find_python() {
    if [ $# -eq 0 ] && [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON"
        return
    fi
    for version in ${1:-3.11 3.12 3.13 3.14 3.15 3}; do
        candidates "$version" | while IFS= read -r python; do
            if is_usable "$python" "${1:-}"; then
                printf '%s\n' "$python"
                break
            fi
        done | head -n 1 | grep . && return
    done
    return 0
}

no_python() {
    say "sharedsock needs Python 3.11 or later with the modules venv and ensurepip."
    seen=$(candidates 3.11 3.12 3.13 3.14 3 | while IFS= read -r python; do
        version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        "$python" -c 'import ensurepip, venv' 2>/dev/null || version="$version, without venv or ensurepip"
        printf '  %s: %s\n' "$python" "$version"
    done)
    if [ -n "$seen" ]; then say "Found:"; say "$seen"; else say "Found none on the PATH."; fi
    fail "Install one (Debian and Ubuntu: apt install python3-venv), or name one: PYTHON=/path/to/python sh $0"
}

# prepare_venv DIRECTORY [VERSION]: an environment with this package, editable, and its dev group; 3 if no such Python.
prepare_venv() {
    venv=$1
    stamp="$venv/.stamp"
    now=$(cksum <pyproject.toml)
    if [ -x "$venv/bin/python" ] && [ "$now" = "$(cat "$stamp" 2>/dev/null)" ] && is_usable "$venv/bin/python"; then
        return 0
    fi
    if ! { [ -x "$venv/bin/python" ] && is_usable "$venv/bin/python" "${2:-}"; }; then
        python=$(find_python ${2:+"$2"})
        if [ -z "$python" ] || ! is_usable "$python" "${2:-}"; then
            [ -n "${2:-}" ] && return 3
            no_python
        fi
        say "setting up $venv with $("$python" --version 2>&1)"
        "$python" -m venv --clear "$venv" || fail "could not make $venv; is the package python3-venv installed?"
    fi
    say "installing sharedsock and its development tools into $venv"
    PIP_DISABLE_PIP_VERSION_CHECK=1
    export PIP_DISABLE_PIP_VERSION_CHECK
    # --group needs pip 25.1, newer than the one a Python brings along.
    "$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1' &&
        "$venv/bin/python" -m pip install --quiet --editable . --group dev ||
        fail "installing failed, see above; pip needs a package index (its own settings apply)"
    printf '%s\n' "$now" >"$stamp"
}

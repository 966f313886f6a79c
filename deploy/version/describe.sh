#!/bin/sh
# describe.sh RELEASE: the version of the sources in the working directory, by
# SemVer 2.0.0. `make` asks it.
#
#   0.1.0               at the tag v0.1.0, or without git
#   0.1.0+3.gabcdef0    three commits after it
#   0.1.0-dev+gabcdef0  before the tag is there
#   ….dirty             with changes that are not committed
release=$1
commit=$(git rev-parse --short=7 HEAD 2>/dev/null) || { echo "$release"; exit; }
if since=$(git rev-list --count "v$release..HEAD" 2>/dev/null); then
	[ "$since" = 0 ] && build= || build=$since.g$commit
	version=$release
else
	build=g$commit
	version=$release-dev
fi
git diff --quiet HEAD 2>/dev/null || build=${build:+$build.}dirty
echo "$version${build:++$build}"

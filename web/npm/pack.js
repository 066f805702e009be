// Packs the npm packages of a release: the programs that goreleaser has built, one
// package for each platform; the launcher, which depends on them; the browser
// client.
//
//   node pack.js VERSION DIST OUT
//
// DIST has a directory for each platform whose name contains, for example,
// linux_amd64. OUT gets the tarballs. Nothing is published. No package runs a
// script when it is installed.
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));

/** The platforms of .goreleaser.yaml. Go and Node name some differently. */
const platforms = [
  { os: "linux", cpu: "x64", directory: "linux_amd64" },
  { os: "linux", cpu: "arm64", directory: "linux_arm64" },
  { os: "darwin", cpu: "x64", directory: "darwin_amd64" },
  { os: "darwin", cpu: "arm64", directory: "darwin_arm64" },
];

const [version, dist, out] = process.argv.slice(2);
if (!/^\d+\.\d+\.\d+(-[\w.-]+)?$/.test(version ?? "") || !dist || !out) {
  console.error("usage: node pack.js VERSION DIST OUT, with a version such as 1.2.3");
  process.exit(2);
}

const nameOf = ({ os, cpu }) => `@cloakroom-bff/cloakroom-${os}-${cpu}`;
const common = {
  version,
  license: "Apache-2.0",
  repository: { type: "git", url: "git+https://github.com/cloakroom-bff/cloakroom.git", directory: "web/npm" },
};

/** Returns the program of a platform in DIST. */
function programIn({ directory }) {
  const found = readdirSync(dist).filter((name) => name.includes(directory) && existsSync(join(dist, name, "cloakroom")));
  if (found.length === 1) return join(dist, found[0], "cloakroom");
  console.error(`${dist}: want one directory with a program for ${directory}, found ${found.length}`);
  process.exit(1);
}

/**
 * Packs a package.
 *
 * @param {object} manifest the content of package.json
 * @param {(directory: string) => void} addFiles
 */
function pack(manifest, addFiles) {
  const directory = mkdtempSync(join(tmpdir(), "cloakroom-npm-"));
  writeFileSync(join(directory, "package.json"), JSON.stringify(manifest, null, 2));
  copyFileSync(join(here, "../../LICENSE"), join(directory, "LICENSE"));
  addFiles(directory);
  execFileSync("npm", ["pack", "--silent", "--pack-destination", resolve(out)], { cwd: directory, stdio: "inherit" });
  rmSync(directory, { recursive: true });
}

const programs = platforms.map((platform) => ({ ...platform, program: programIn(platform) })); // before anything is written
mkdirSync(out, { recursive: true });
for (const { program, ...platform } of programs) {
  const { os, cpu } = platform;
  pack({ name: nameOf(platform), ...common, description: `The program of @cloakroom-bff/cloakroom for ${os} ${cpu}`, os: [os], cpu: [cpu], preferUnplugged: true }, (directory) => {
    mkdirSync(join(directory, "bin"));
    copyFileSync(program, join(directory, "bin/cloakroom"));
    chmodSync(join(directory, "bin/cloakroom"), 0o755);
  });
}
pack(
  {
    name: "@cloakroom-bff/cloakroom",
    ...common,
    description: "A backend for a frontend (BFF): keeps the tokens of your app on the server",
    type: "module",
    bin: { cloakroom: "launcher.js" },
    engines: { node: ">=20" },
    optionalDependencies: Object.fromEntries(platforms.map((platform) => [nameOf(platform), version])),
  },
  (directory) => {
    copyFileSync(join(here, "launcher.js"), join(directory, "launcher.js"));
    copyFileSync(join(here, "README.md"), join(directory, "README.md"));
  },
);
const client = join(here, "../client");
pack({ ...JSON.parse(readFileSync(join(client, "package.json"), "utf8")), version }, (directory) => {
  cpSync(client, directory, { recursive: true, filter: (file) => !file.endsWith("package.json") && !file.includes("node_modules") });
});

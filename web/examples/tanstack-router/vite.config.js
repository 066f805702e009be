import { cloakroom } from "@cloakroom-bff/client/vite";

// The plugin compresses the build and prints the policy that it needs. With "cloakroom dev -- npm run dev" its proxy is not used.
export default { plugins: [cloakroom()] };

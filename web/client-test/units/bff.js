import { createClient } from "@cloakroom-bff/client";

export const bff = createClient();

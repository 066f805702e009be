import { journeys } from "./journeys.js";
import { serve, tokenLife } from "./serve.js";

journeys("cloakroom serve", serve, { tokenLife });

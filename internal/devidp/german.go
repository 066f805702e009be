package devidp

// german has the German texts of the pages, by the English ones.
var german = map[string]string{
	"<strong>Development provider.</strong> It has no passwords: anyone can sign in as any user.": "" +
		"<strong>Provider für die Entwicklung.</strong> Er hat keine Passwörter: Jeder kann sich als jeder " +
		"Benutzer anmelden.",
	"development provider": "Provider für die Entwicklung",

	// To pick a user
	"Sign in": "Anmelden",
	"Pick a user for <strong>%s</strong>. It requests these scopes:": "Wählen Sie einen Benutzer für " +
		"<strong>%s</strong>. Verlangt werden diese Scopes:",
	"Pick a user for <strong>%s</strong>. It requests the authentication <strong>%s</strong> and these scopes:": "" +
		"Wählen Sie einen Benutzer für <strong>%s</strong>. Verlangt werden die Authentifizierung " +
		"<strong>%s</strong> und diese Scopes:",
	"last time":                   "zuletzt",
	"Cancel":                      "Abbrechen",
	"Sign in with other claims":   "Mit anderen Claims anmelden",
	"Claims of the user, as JSON": "Claims des Benutzers, als JSON",
	"Back to the app":             "Zurück zur App",
	"Continue":                    "Weiter",

	// To sign out
	"Sign out":  "Abmelden",
	"Sign out?": "Abmelden?",
	"You are signed in as <strong>%s</strong>. Signing out affects all apps.": "Sie sind als <strong>%s</strong> " +
		"angemeldet. Die Abmeldung gilt für alle Apps.",
	"Stay signed in":          "Angemeldet bleiben",
	"You are still signed in": "Sie sind weiterhin angemeldet",
	"You are signed out":      "Sie sind abgemeldet",

	// Mistakes
	"That did not work":                 "Das hat nicht geklappt",
	"The form cannot be read.":          "Das Formular ist nicht lesbar.",
	"The app's request is invalid: %s.": "Die Anfrage der App ist ungültig: %s.",
	"The claims: %s.":                   "Die Claims: %s.",
	"The page is out of date. Go back and load it again.": "Die Seite ist veraltet. Gehen Sie zurück, und " +
		"laden Sie sie neu.",
	"There is no such user.":                          "Diesen Benutzer gibt es nicht.",
	"You have already answered this on another page.": "Das haben Sie schon auf einer anderen Seite beantwortet.",
	"You are not signed out":                          "Sie sind nicht abgemeldet",
	"The id_token_hint is not an ID token of this provider for this client.": "Der id_token_hint ist kein ID-Token " +
		"dieses Providers für diesen Client.",
	"The post_logout_redirect_uri is not registered for this client.": "Die post_logout_redirect_uri ist für " +
		"diesen Client nicht registriert.",
	"You can close this page.": "Sie können diese Seite schließen.",
}
